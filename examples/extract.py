"""Structured extraction: an invoice as text goes in, a checked pydantic object comes out.

    pip install 'enginekit[langchain,embedded]'
    python examples/extract.py                      # the invoice in examples/data
    python examples/extract.py path/to/invoice.txt

Decoding is constrained by the schema on every engine, so the form is always right, even on a tiny
model. Whether the values are right is the model's business, so the program checks the sum itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field

from enginekit.langchain import EngineKitChat

INVOICE = Path(__file__).parent / "data" / "invoice.txt"


class Line(BaseModel):
    """One line of an invoice."""

    quantity: int = Field(ge=1, le=999)
    item: str = Field(max_length=60)
    amount: float = Field(description="quantity times unit price")


class Invoice(BaseModel):
    """What the book-keeping needs to know."""

    number: str = Field(max_length=20)
    seller: str = Field(max_length=60)
    lines: list[Line] = Field(max_length=5)
    total: float


def main(path: str | Path = INVOICE) -> None:
    """Read one invoice and say whether its lines add up."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Extract the data of the invoice."), ("human", "{document}")]
    )
    model = EngineKitChat(temperature=0, max_tokens=800)
    chain = prompt | model.with_structured_output(Invoice)
    invoice = chain.invoke({"document": Path(path).read_text(encoding="utf-8")})
    assert isinstance(invoice, Invoice)
    print(f"invoice {invoice.number} from {invoice.seller}")
    for line in invoice.lines:
        print(f"  {line.quantity:3} {line.item:40} {line.amount:10.2f}")
    added = sum(line.amount for line in invoice.lines)
    verdict = "adds up" if abs(added - invoice.total) < 0.005 else f"but the lines are {added:.2f}"
    print(f"  total {invoice.total:.2f}: {verdict}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
