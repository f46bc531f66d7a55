"$LAB_BUSYBOX" httpd -f -p 127.0.0.1:8000 -h "$W/www" &
server=$!
# Its own input never ends: at an end it would hang up before the guest has sent everything.
mkfifo "$W/never"
"$LAB_BUSYBOX" nc -l -p 5000 <>"$W/never" >"$W/received" &
listener=$!
trap 'kill $server $listener 2>/dev/null' EXIT
for round in 1 2; do
    on_console "GUEST: idle $round" 120
    killed disks
    left=100
    until ctl status | grep -q '^degraded vhost0, vhost1'; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "the disks' daemon has gone and status says $(ctl status)"
        sleep 0.1
    done
    rm -f "$W/raw.sock" "$W/qcow2.sock"
    start_disks
    echo >"$W/www/restarted$round"
done
on_console 'peers done' 120
wait $listener
