on_console '^before'
on_console 'GUEST: round'
# no_snapshot WORDS ARGUMENTS...: it must fail and say so.
no_snapshot() {
    words=$1
    shift
    ctl snapshot "$@" >said 2>&1 && fail "snapshot $* was taken"
    grep -q -- "$words" said || fail "snapshot $*: '$(cat said)' does not say '$words'"
}
no_snapshot 'there are: disk0, disk1, disk2' disk7 path=x
no_snapshot 'there is such a file' disk0 path=signal
no_snapshot 'No space left' disk0 path=small/new
[ ! -e small/new ] || fail 'a file is left'
ctl snapshot disk0 path=vda.1,format=qcow2 >said || fail 'snapshot of disk0'
grep -q running said || fail "after a snapshot: $(cat said)"
ctl snapshot disk2 path=sda.1 >/dev/null || fail 'snapshot of the drive'
# On top of the first; and of a machine that is paused, which stays so.
ctl snapshot disk0 path=vda.2 >/dev/null || fail 'the second snapshot'
ctl pause >/dev/null
ctl snapshot disk2 path=sda.2 | grep -q paused || fail 'a snapshot ended the pause'
ctl resume >/dev/null
printf snapshots | dd of=signal conv=notrunc 2>/dev/null
