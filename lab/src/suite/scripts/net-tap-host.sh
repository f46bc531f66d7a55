host_tap tt0 10.7.0.1/24
bb httpd -f -p 10.7.0.1:80 -h "$W/www" &
server=$!
bb nc -l -p 5000 >"$W/received" &
listener=$!
on_console 'network done' 200
wait $listener
kill $server
