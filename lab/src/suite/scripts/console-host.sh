on_console 'talk now'
(echo 'hello guest'; sleep 3) | "$LAB_CONNECT" "$W/talk" >"$W/answer"
