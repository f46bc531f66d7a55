host_tap tt0 10.7.0.1/24
"$LAB_BUSYBOX" httpd -f -p 10.7.0.1:80 -h "$W/www" &
server=$!
# Its own input never ends: at an end it would hang up before the guest has sent everything.
mkfifo "$W/never"
"$LAB_BUSYBOX" nc -l -p 5000 <>"$W/never" >"$W/received" &
listener=$!
trap 'kill $server $listener 2>/dev/null' EXIT
on_console 'network done' 200
wait $listener
want 'bytes that the guest sent' "$(wc -c <"$W/received")" "$(wc -c <"$W/www/large")"
