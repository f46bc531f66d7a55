on_console 'load begins'
for round in 1 2 3 4 5 6 7 8 9 10; do
    ctl pause >/dev/null || fail "pause $round"
    ctl status | grep -q paused || fail "status says $(ctl status)"
    before=$(sum disk)
    sleep 0.3
    want 'sum of the disk of a paused machine' "$(sum disk)" "$before"
    ctl resume >/dev/null || fail "resume $round"
    sleep 0.$((round % 4))
done
# The guest looks at this second disk.
printf stop | dd of=signal conv=notrunc
