on_console 'GUEST: begin'
rounds=0
until grep -q 'GUEST: end' "$CONSOLE"; do
    sleep 0.5
    killed disk
    left=100
    until ctl status | grep -q '^degraded vhost0'; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "the back-end has gone and status says $(ctl status)"
        sleep 0.05
    done
    ctl devices | grep -q 'degraded: the back-end is away' || fail "devices says $(ctl devices)"
    serve disk blk --disk "path=$W/disk,format=raw,queues=2"
    rounds=$((rounds + 1))
    left=200
    while ctl status | grep -q '^degraded'; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "the back-end is back and status says $(ctl status)"
        sleep 0.05
    done
done
[ $rounds -ge 2 ] || fail "only $rounds restarts while the guest was at work"
