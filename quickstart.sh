#!/usr/bin/env bash
# From an empty folder to a chat with a model that you trained yourself, on whatever machine this is.
#
#   bash quickstart.sh                        goes on where it stopped, if it was stopped
#   bash quickstart.sh --fresh                starts over
#   bash quickstart.sh --data PATH            your own text instead of Wikipedia's vital articles
#   bash quickstart.sh --minutes N --depth D  how long it may take (12), how deep the model is
#
# Every line below is a command that you can run by itself. Artifacts go to $NANOCHAT_BASE_DIR (~/.cache/nanochat).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case " $* " in *" --help "* | *" -h "*) # before anything is installed
    sed -n '2,/^$/ s/^# \?//p; /^set/q' "$0"
    exit
    ;;
esac
source dev/venv.sh
make_venv .venv wiki
export PATH="$PWD/.venv/bin:$PATH"

sizes=$(python -m scripts.plan "$@")
eval "$sizes"

count=0
stage() { # stage TITLE COMMAND...: run it unless it was done before; mark it as done
    count=$((count + 1))
    local mark="$DONE/$count.done" title=$1
    shift
    if [ -e "$mark" ]; then
        printf '[%d/9] %s: done before\n' "$count" "$title"
    else
        printf '\n[%d/9] %s: %s\n' "$count" "$title" "$*"
        "$@"
        touch "$mark"
    fi
}

data=(--source wiki)
[ -z "$SOURCE" ] || data=(--from "$SOURCE" --name "$DATA")
run=(--model_tag=quickstart --resume --keep_last=1)

[ -e "$DONE/1.done" ] || python -m nanochat.report reset
stage "Text" python -m nanochat.dataset "${data[@]}"
stage "Tokenizer" python -m scripts.tok_train --data="$DATA" --vocab_size="$VOCABULARY"
stage "Pretraining" python -m scripts.base_train "${run[@]}" --data="$DATA" --depth="$DEPTH" --max_seq_len="$CONTEXT" \
    --total_batch_size="$BATCH" --minutes="$BASE_MINUTES" --eval_tokens=16384
stage "Base model" python -m scripts.base_loss --model_tag=quickstart --eval_tokens=65536
stage "Midtraining" python -m scripts.mid_train "${run[@]}" --mixture=quickstart --minutes="$MID_MINUTES"
stage "Finetuning" python -m scripts.chat_sft "${run[@]}" --mixture=quickstart --minutes="$SFT_MINUTES"
stage "Evaluation of midtraining" python -m scripts.chat_eval -i mid -g quickstart --max_items=$((ITEMS / 2)) --contamination="$DATA"
stage "Evaluation" python -m scripts.chat_eval -i sft -g quickstart --max_items="$ITEMS" --contamination="$DATA"
stage "Report" python -m nanochat.report generate

printf '\nA talk with the model that you have just trained:\n'
for question in "Who are you?" "What is the Moon?" "What is a flumbrick?" "What is 1234 times 56?" "How many r's are in strawberry?"; do
    printf '\n> %s\n' "$question"
    python -m scripts.chat_cli -g quickstart -p "$question"
done
cat <<END

It knows who it is, asks a calculator and an encyclopedia, and says so when it finds nothing; it does not reason.

Go on talking:   .venv/bin/python -m scripts.chat_web    in the browser
                 .venv/bin/python -m scripts.chat_cli    in the terminal
How good is it:  ${DONE%/*}/report/report.html
Longer, larger:  bash quickstart.sh --minutes 60
How it works:    docs/guide/README.md
END
