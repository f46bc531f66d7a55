stopped() { ctl devices | grep -c 'stopped, `resume` tries again.*No space left'; }
left=100
until [ "$(stopped)" = 2 ]; do
    left=$((left - 1))
    [ $left -gt 0 ] || fail "not both disks have stopped: $(ctl devices)"
    sleep 0.2
done
# Without room, trying again changes nothing; neither can there be a snapshot.
ctl resume >/dev/null
sleep 0.5
want 'disks that have stopped again' "$(stopped)" 2
ctl snapshot disk0 path=new >said 2>&1 && fail 'a snapshot of a disk that waits'
grep -q 'waits to be resumed' said || fail "it says '$(cat said)'"
grep -q '^written' "$CONSOLE" && fail 'it was written without room'
mount -o remount,size=32m small || fail remount
ctl resume >/dev/null
on_console '^written'
want 'disks that wait' "$(stopped)" 0
