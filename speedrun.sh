#!/usr/bin/env bash
# The reference run: from a bare machine with 8 H100 GPUs to a chat model, its report and a page to talk to it.
#
#   bash speedrun.sh               DEPTH=20 SHARDS=240 GPUS=8 are the defaults; RL=1 adds reinforcement learning
#   bash speedrun.sh --rehearse    every command of it at toy size, on two processes of this machine, without a network:
#                                  an error is found before a machine is paid for
#
# Run it again to go on where it stopped. Artifacts go to $NANOCHAT_BASE_DIR (~/.cache/nanochat).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [ "${1:-}" = --rehearse ]; then
    if [ -z "${NANOCHAT_BASE_DIR:-}" ]; then
        NANOCHAT_BASE_DIR=$(mktemp -d)
        trap 'rm -rf "$NANOCHAT_BASE_DIR"' EXIT
        export NANOCHAT_BASE_DIR
    fi
    ranks=2
    data=wiki
    get_first=(--source wiki)
    get_rest=(--help)
    get_evals=(--help)
    tokenizer=(--vocab_size=512 --max_chars=200000)
    toy=(--device=cpu --num_iterations=3 --device_batch_size=2 --total_batch_size=1024)
    base=(--depth=2 --max_seq_len=256 --eval_tokens=2048 "${toy[@]}")
    chat=(--mixture=quickstart "${toy[@]}")
    rl=(--task=Arithmetic --examples_per_step=2 --num_samples=2 --max_tokens=16 --eval_items=2 --num_iterations=1 --device=cpu)
    loss=(--device=cpu --eval_tokens=4096)
    evaluation=(--device=cpu --max_items=2)
    core=(--device=cpu --max_per_task=2)
    RL=1
else
    ranks=${GPUS:-8}
    data=climbmix
    get_first=(-n 8)
    get_rest=(-n "${SHARDS:-240}")
    get_evals=(--training)
    tokenizer=(--max_chars=2000000000)
    base=(--depth="${DEPTH:-20}" --device_batch_size="${DEVICE_BATCH_SIZE:-32}")
    chat=(--device_batch_size="${DEVICE_BATCH_SIZE:-32}")
    rl=()
    loss=()
    evaluation=()
    core=()
fi

source dev/venv.sh
make_venv .venv wiki
export PATH="$PWD/.venv/bin:$PATH"
everywhere() { torchrun --standalone --nproc_per_node="$ranks" -m "$@"; }

home=${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}
[ -e "$home/report" ] || python -m nanochat.report reset

# Text. The first shards are enough for the tokenizer; the rest comes while it is trained, and pretraining waits for a
# shard only when it needs it. A shard is 250 M characters, about 60 M tokens.
python -m nanochat.dataset "${get_first[@]}"
python -m nanochat.dataset "${get_rest[@]}" >&2 &
rest=$!
python -m tasks.published "${get_evals[@]}" >/dev/null
python -m scripts.tok_train --data="$data" "${tokenizer[@]}"
python -m scripts.tok_eval --data="$data"

# The base model.
everywhere scripts.base_train -- --data="$data" --resume "${base[@]}"
wait "$rest"
everywhere scripts.base_loss -- "${loss[@]}"
if [ -e "$home/evals/eval_meta_data.csv" ]; then
    everywhere scripts.base_eval -- "${core[@]}"
else
    echo "The CORE metric is left out: its files are not in $home/evals. python -m scripts.base_eval says where they are published."
fi

# The assistant.
everywhere scripts.mid_train -- --resume "${chat[@]}"
everywhere scripts.chat_eval -- -i mid "${evaluation[@]}"
everywhere scripts.chat_sft -- --resume "${chat[@]}"
everywhere scripts.chat_eval -- -i sft "${evaluation[@]}"
if [ -n "${RL:-}" ]; then
    everywhere scripts.chat_rl -- --resume "${rl[@]}"
    everywhere scripts.chat_eval -- -i rl "${evaluation[@]}"
fi

python -m nanochat.report generate
python -m scripts.chat_cli -p "Why is the sky blue?"
echo "Talk to it in the browser:  .venv/bin/python -m scripts.chat_web"
