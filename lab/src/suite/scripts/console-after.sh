grep -q 'the guest heard: hello guest' answer || fail "the guest answered '$(cat answer)'"
seq 1 20000 >wanted
tr -d '\r' <log | cmp - wanted || fail 'the log differs'
