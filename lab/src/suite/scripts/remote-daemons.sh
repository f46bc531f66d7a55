# daemon NAME COMMAND...: starts a back-end; its process is in NAME.pid, what it says in NAME.log.
daemon() {
    name=$1
    shift
    "$@" >>"$T/$name.log" 2>&1 </dev/null &
    echo $! >"$W/$name.pid"
}

# listening NAME: waits until somebody listens on NAME.sock.
listening() {
    left=100
    until [ -S "$W/$1.sock" ]; do
        left=$((left - 1))
        [ $left -gt 0 ] || fail "nobody listens on $1.sock: $(cat "$T/$1.log")"
        sleep 0.1
    done
}

# serve NAME ARGUMENTS...: `treaty serve` on NAME.sock.
serve() {
    socket=$W/$1.sock name=$1 kind=$2
    shift 2
    daemon "$name" "$LAB_TREATY" serve "$kind" --socket "$socket" "$@"
    listening "$name"
}

# serve_client NAME ARGUMENTS...: the same, connecting to NAME.sock.
serve_client() {
    socket=$W/$1.sock name=$1 kind=$2
    shift 2
    daemon "$name" "$LAB_TREATY" serve "$kind" --socket "$socket" --client "$@"
}

# killed NAME: no chance to tidy up; waits until it has gone.
killed() {
    pid=$(cat "$W/$1.pid")
    kill -KILL "$pid"
    while [ -e "/proc/$pid/exe" ]; do sleep 0.05; done
    rm -f "$W/$1.sock"
}

# end_daemons: those that still run.
end_daemons() {
    for file in "$W"/*.pid; do
        kill -TERM "$(cat "$file")" 2>/dev/null
    done
    true
}

# peer PROGRAM: the words that run a program of the peers' packages, which are not installed.
peer() {
    libraries=$LAB_PEERS/usr/lib/x86_64-linux-gnu
    echo "$libraries/ld-linux-x86-64.so.2 --library-path $libraries $LAB_PEERS/usr/$1"
}

# start_disks: qemu-storage-daemon with a raw and a qcow2 image.
start_disks() {
    export="type=vhost-user-blk,writable=on,writethrough=on,num-queues=2,addr.type=unix"
    daemon disks env "QEMU_MODULE_DIR=$LAB_PEERS/usr/lib/x86_64-linux-gnu/qemu" $(peer bin/qemu-storage-daemon) \
        --blockdev "driver=file,node-name=file0,filename=$W/raw" --blockdev driver=raw,node-name=raw,file=file0 \
        --blockdev "driver=file,node-name=file1,filename=$W/qcow2" --blockdev driver=qcow2,node-name=qcow2,file=file1 \
        --export "$export,id=raw,addr.path=$W/raw.sock,node-name=raw" \
        --export "$export,id=qcow2,addr.path=$W/qcow2.sock,node-name=qcow2"
    listening raw
    listening qcow2
}
