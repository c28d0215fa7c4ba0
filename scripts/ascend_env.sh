# Sourced by the scripts that start several ranks: what every rank is given on Ascend; elsewhere it means nothing.
# shellcheck shell=bash

export MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE
# Seconds until HCCL gives up: until the last rank has started, and in a sum over all ranks, in which the others wait while
# rank 0 saves or samples videos.
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1200} HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT:-7200}
