"""Windows: a job object that every owner holds, so that the kernel ends the server with the last.

The job has a name, KILL_ON_JOB_CLOSE, and one handle per owner. Windows closes a dead process's
handles, and when the last handle of a job is closed it ends every process in the job: the counting
of owners is the kernel's. It stands beside the control port, not instead of it.
Source: Win32 documentation of CreateJobObjectW, OpenJobObjectW, SetInformationJobObject,
JOBOBJECT_EXTENDED_LIMIT_INFORMATION (JobObjectExtendedLimitInformation = 9).
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _KILL_ON_JOB_CLOSE = 0x2000
    _EXTENDED_LIMITS = 9
    _JOB_OBJECT_ALL_ACCESS = 0x1F001F

    class _BasicLimits(ctypes.Structure):
        _fields_ = [
            ("PerProcessUserTimeLimit", wintypes.LARGE_INTEGER),
            ("PerJobUserTimeLimit", wintypes.LARGE_INTEGER),
            ("LimitFlags", wintypes.DWORD),
            ("MinimumWorkingSetSize", ctypes.c_size_t),
            ("MaximumWorkingSetSize", ctypes.c_size_t),
            ("ActiveProcessLimit", wintypes.DWORD),
            ("Affinity", ctypes.c_size_t),
            ("PriorityClass", wintypes.DWORD),
            ("SchedulingClass", wintypes.DWORD),
        ]

    class _Counters(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_ulonglong)
            for name in (
                "ReadOperationCount",
                "WriteOperationCount",
                "OtherOperationCount",
                "ReadTransferCount",
                "WriteTransferCount",
                "OtherTransferCount",
            )
        ]

    class _ExtendedLimits(ctypes.Structure):
        _fields_ = [
            ("BasicLimitInformation", _BasicLimits),
            ("IoInfo", _Counters),
            ("ProcessMemoryLimit", ctypes.c_size_t),
            ("JobMemoryLimit", ctypes.c_size_t),
            ("PeakProcessMemoryUsed", ctypes.c_size_t),
            ("PeakJobMemoryUsed", ctypes.c_size_t),
        ]

    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel.CreateJobObjectW.restype = wintypes.HANDLE
    _kernel.CreateJobObjectW.argtypes = [ctypes.c_void_p, wintypes.LPCWSTR]
    _kernel.OpenJobObjectW.restype = wintypes.HANDLE
    _kernel.OpenJobObjectW.argtypes = [wintypes.DWORD, wintypes.BOOL, wintypes.LPCWSTR]
    _kernel.SetInformationJobObject.restype = wintypes.BOOL
    _kernel.SetInformationJobObject.argtypes = [
        wintypes.HANDLE,
        ctypes.c_int,
        ctypes.c_void_p,
        wintypes.DWORD,
    ]
    _kernel.AssignProcessToJobObject.restype = wintypes.BOOL
    _kernel.AssignProcessToJobObject.argtypes = [wintypes.HANDLE, wintypes.HANDLE]
    _kernel.CloseHandle.restype = wintypes.BOOL
    _kernel.CloseHandle.argtypes = [wintypes.HANDLE]

    def create(name: str, process: int) -> int:
        """Make a job of this name around a process; the handle that keeps it alive.

        Raises:
            OSError: Windows refused.
        """
        job = _kernel.CreateJobObjectW(None, name)
        if not job:
            raise ctypes.WinError(ctypes.get_last_error())
        limits = _ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE
        done = _kernel.SetInformationJobObject(
            job, _EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)
        ) and _kernel.AssignProcessToJobObject(job, process)
        if not done:
            error = ctypes.WinError(ctypes.get_last_error())
            _kernel.CloseHandle(job)
            raise error
        return int(job)

    def hold(name: str) -> int:
        """One more handle on the job of this name; 0 when it is gone."""
        return int(_kernel.OpenJobObjectW(_JOB_OBJECT_ALL_ACCESS, False, name) or 0)

    def release(handle: int) -> None:
        """Let go of a handle."""
        if handle:
            _kernel.CloseHandle(handle)
