host_tap tt0 10.7.0.1/24
# exits: those that have gone to the monitor so far.
exits() {
    ctl --json status | tr -d '\n' >"$T/status.$1"
    cat "$T/status.$1" >>"$T/l1.log"
    port=$(sed -n 's/.*"port": *\([0-9]*\).*/\1/p' "$T/status.$1")
    memory=$(sed -n 's/.*"memory": *\([0-9]*\).*/\1/p' "$T/status.$1")
    echo $((port + memory))
}
# per_operation NAME COUNT MOST: exits between two marks, in hundredths for each of COUNT operations, are at most MOST.
per_operation() {
    on_console "mark $1-begin" 60
    begin=$(exits "$1-begin")
    on_console "mark $1-end" 60
    end=$(exits "$1-end")
    each=$(((end - begin) * 100 / $2))
    echo "$1: $((end - begin)) exits, $each hundredths an operation"
    [ $each -le "$3" ] || fail "$1: $each hundredths of an exit for an operation, which is more than $3"
}
per_operation ide 1000 1900
# 144 were counted before sent frames were told of in batches, and 170 with QEMU.
per_operation tx 2000 150
