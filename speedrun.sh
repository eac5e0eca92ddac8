#!/usr/bin/env bash
# The reference run: from a bare machine with 8 H100 GPUs to a chat model, its report and a page to talk to it.
#
#   bash speedrun.sh               about 100 dollars: depth 24, which in Karpathy's nanochat passes GPT-2's CORE of 0.2565
#   bash speedrun.sh --rehearse    every command of it at toy size, on two processes of this machine, without the network:
#                                  an error is found before a machine is paid for
#   bash speedrun.sh --list        only shows the commands
#
# TIER=100, 300 or 1000 (dollars) chooses depth, text and batch by scripts/forecast.py; DEPTH=20 chooses them by depth.
# GPUS=8 is how many this machine has, GPU=H100 which; RL=1 adds reinforcement learning. SEEN=1 counts which test items
# stand in the training text: all of it is read once for each evaluation, at depth 24 in some ten minutes. On several
# machines that share a disk: NODES=2 NODE_RANK=0 MASTER=HOST:PORT on the first, NODE_RANK=1 on the second
# (dev/speedrun.slurm and .sky.yaml).
#
# Run it again to go on where it stopped. Artifacts go to $NANOCHAT_BASE_DIR (~/.cache/nanochat).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

rehearse='' list=''
for flag in "$@"; do
    case $flag in
        --rehearse) rehearse=1 ;;
        --list) list=1 ;;
        *) echo "speedrun.sh: $flag is not --rehearse or --list" >&2; exit 2 ;;
    esac
done
nodes=${NODES:-1} node=${NODE_RANK:-0} ranks=${GPUS:-8}
if [ "$nodes" = 1 ]; then
    meet=(--standalone)
else
    : "${MASTER:?with NODES=$nodes, say where the first of them listens: MASTER=HOST:PORT}"
    meet=(--nnodes="$nodes" --node_rank="$node" --master_addr="${MASTER%:*}" --master_port="${MASTER##*:}" --rdzv_conf=timeout=7200)
fi

if [ -z "$list" ]; then
    source dev/venv.sh
    make_venv .venv wiki
    export PATH="$PWD/.venv/bin:$PATH"
fi

# Sizes, and how long each stage will take, by the rules of the training itself.
size=(--dollars="${TIER:-100}")
[ -z "${DEPTH:-}" ] || size=(--depth="$DEPTH")
sizes=$(python -m scripts.forecast --gpus="$((nodes * ranks))x${GPU:-H100}" "${size[@]}" --shell)
eval "$sizes"
mirror=() tokenizer=() base=(--depth="$DEPTH" --device_batch_size="$ROWS") chat=(--device_batch_size="$ROWS")
device=() few=() loss=() core=() rl=() seen=() temporary=''

if [ -n "$rehearse" ]; then
    if [ -z "${NANOCHAT_BASE_DIR:-}" ]; then
        NANOCHAT_BASE_DIR=$(mktemp -d)
        temporary=$NANOCHAT_BASE_DIR
    fi
    export NANOCHAT_BASE_DIR OMP_NUM_THREADS=1
    ranks=$((nodes > 1 ? 1 : 2)) DEPTH=2 SHARDS=3 RL=1 SEEN=1
    for stage in TEXT TOKENIZER PRETRAINING BASE MIDTRAINING FINETUNING LEARNING; do
        time=TIME_$stage
        printf -v "$time" 'some seconds, not %s' "${!time}"
    done
    mirror=(--mirror=URL) device=(--device=cpu)
    toy=(--device=cpu --num_iterations=3 --save_every=1 --device_batch_size=2 --total_batch_size=1024)
    tokenizer=(--vocab_size=512)
    base=(--depth=2 --max_seq_len=256 --eval_tokens=2048 "${toy[@]}")
    chat=("${toy[@]}")
    few=(--max_items=2)
    core=(--max_items=2)
    loss=(--eval_tokens=4096)
    rl=(--examples_per_step=2 --num_samples=2 --max_tokens=16 --eval_items=2 --num_iterations=1)
    if [ -z "$list" ] && [ "$node" = 0 ]; then
        rm -f "$NANOCHAT_BASE_DIR/mirror/url"
        python -m dev.mirror "$NANOCHAT_BASE_DIR/mirror" &
        serving=$!
        trap 'kill "$serving"; [ -z "$temporary" ] || rm -rf "$temporary"' EXIT
        until [ -e "$NANOCHAT_BASE_DIR/mirror/url" ]; do
            kill -0 "$serving" || exit 1
            sleep 0.2
        done
        mirror=(--mirror="$(cat "$NANOCHAT_BASE_DIR/mirror/url")")
    fi
fi

[ -z "${SEEN:-}" ] || seen=(--contamination=climbmix)

marks=${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}/speedrun-d$DEPTH
count=0
run() { # run TIME COMMAND...: only show it if a list is asked for
    local time=$1
    shift
    [ -n "$list" ] && { echo "$*"; return; }
    printf '\n[%d, about %s] %s\n' "$count" "$time" "$*"
    "$@"
}
step() { # step TIME COMMAND...: run it unless it was done before
    count=$((count + 1))
    if [ -z "$list" ] && [ -e "$marks/$count.done" ]; then
        printf '[%d] done before: %s\n' "$count" "${*:2}"
        return
    fi
    run "$@"
    [ -n "$list" ] || { mkdir -p "$marks" && touch "$marks/$count.done"; }
}
once() { # on the first machine only
    if [ "$node" = 0 ]; then step "$@"; else count=$((count + 1)); fi
}
again() { # on the first machine, each time: what goes on by itself where it was stopped
    count=$((count + 1))
    [ "$node" != 0 ] || run "$@"
}
everywhere() { step "$1" torchrun "${meet[@]}" --nproc_per_node="$ranks" -m "$2" -- "${@:3}"; }

once "a second" python -m nanochat.report reset

# Text. The first shards are enough for the tokenizer; the rest comes while it is trained, and pretraining waits for a
# shard only when it needs it.
again "$TIME_TEXT" python -m nanochat.dataset -n "$SHARDS" --background "${mirror[@]}"
again "$TIME_TEXT" python -m tasks.published --training "${mirror[@]}"
once "$TIME_TOKENIZER" python -m scripts.tok_train --max_chars=2000000000 "${tokenizer[@]}"
once "a minute" python -m scripts.tok_eval

# The base model.
everywhere "$TIME_PRETRAINING" scripts.base_train --resume "${base[@]}"
everywhere "$TIME_BASE, with the next" scripts.base_loss "${device[@]}" "${loss[@]}"
everywhere "$TIME_BASE, with the one before" scripts.base_eval "${device[@]}" "${core[@]}" "${seen[@]}"

# The assistant.
everywhere "$TIME_MIDTRAINING, with the next" scripts.mid_train --resume "${chat[@]}"
everywhere "$TIME_MIDTRAINING, with the one before" scripts.chat_eval -i mid "${device[@]}" "${few[@]}"
everywhere "$TIME_FINETUNING, with the next" scripts.chat_sft --resume "${chat[@]}"
everywhere "$TIME_FINETUNING, with the one before" scripts.chat_eval -i sft "${device[@]}" "${few[@]}" "${seen[@]}"
if [ -n "${RL:-}" ]; then
    everywhere "$TIME_LEARNING, with the next" scripts.chat_rl --resume "${device[@]}" "${rl[@]}"
    everywhere "$TIME_LEARNING, with the one before" scripts.chat_eval -i rl "${device[@]}" "${few[@]}" "${seen[@]}"
fi

once "half a minute" python -m nanochat.report generate
once "a minute" python -m scripts.chat_cli -p "Why is the sky blue?"
[ -n "$list" ] || echo "Talk to it in the browser:  .venv/bin/python -m scripts.chat_web"
