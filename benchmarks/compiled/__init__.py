"""Optimizer steps compiled for machines that are not there, and what that shows.

The compilers of TPUs and of CUDA run ahead of time on any machine. Their programs tell
what a step moves through memory, keeps besides, launches and exchanges; not how long
it takes.
"""

import os

# Read when JAX and libtpu are loaded. No device is looked for, and a second process may
# load libtpu too.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
