host_tap tt0 10.7.0.1/24
"$LAB_BUSYBOX" httpd -f -p 10.7.0.1:80 -h "$W/www" &
trap "kill $! 2>/dev/null" EXIT
on_console 'demo done' 100
ctl counters
