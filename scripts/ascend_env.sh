# Sourced by the scripts that start several ranks: environment variables for Ascend, without effect on other devices.
# shellcheck shell=bash

export MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE
# Timeouts of HCCL in seconds: until the last rank has started, and in a sum over all ranks, where the other ranks wait
# while rank 0 saves or samples videos.
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1200} HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT:-7200}
