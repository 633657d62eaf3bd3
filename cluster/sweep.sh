#!/bin/sh
# sweep.sh NAME STORAGE TASK [options of the sweep]: starts the run NAME, or goes on with it where it was begun.
# For schedulers, which give the same command again after a lost node, a lost head or a time limit.
set -eu
name=$1 storage=$2
shift 2
if python -m cxrlt_ray.trials "$name" --storage "$storage" >/dev/null 2>&1; then set -- "$@" --resume; fi
# where the storage did not answer just now, a run that is there is not begun again: the sweep refuses its name
exec python -m cxrlt_ray.sweep "$@" --name "$name" --storage "$storage"
