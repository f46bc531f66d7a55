# answers FILE RULE...: the answer of `treaty audit --json` in FILE has each of the rules.
answers() {
    file=$1
    shift
    for rule in "$@"; do
        grep -q "\"rule\": \"$rule\"" "$file" || fail "audit does not say $rule but $(grep '"rule"' "$file" | tr -d ' \n')"
    done
}

# silent FILE WORD...: no rule in FILE begins with one of the words.
silent() {
    file=$1
    shift
    for word in "$@"; do
        grep "\"rule\": \"$word" "$file" && fail "audit says $word"
    done
    true
}

# loaded LOG SECONDS: waits until the guest whose console is in LOG works.
loaded() {
    left=$(($2 * 5))
    until grep -q 'load begins' "$1" 2>/dev/null; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "no load after $2 s: $(tail -5 "$1")"
        grep 'GUEST: failed' "$1" && fail "$(grep 'GUEST: failed' "$1")"
        sleep 0.2
    done
}
