#!/bin/sh
# Makes the test certificates of this folder: an authority, a server for loopback, a client.
# They protect nothing, and are valid for a hundred years.
set -e
cd "$(dirname "$0")"
key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500"
openssl req -x509 $key -keyout ca.key -out ca.pem -subj "/CN=enginekit test authority" \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign"
for name in server client; do
  openssl req -x509 $key -keyout $name.key -out $name.crt -CA ca.pem -CAkey ca.key \
    -subj "/CN=enginekit test $name" -addext "basicConstraints=critical,CA:FALSE" \
    -addext "subjectAltName=DNS:localhost,IP:127.0.0.1"
  cat $name.crt $name.key > $name.pem
done
rm -f ca.key server.crt server.key client.crt client.key
