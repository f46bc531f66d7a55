want processors "$(nproc)" 2
for cpu in 0 1; do
    want "processor under test" "$(taskset "$((cpu + 1))" cut -d' ' -f39 /proc/self/stat)" $cpu
done
