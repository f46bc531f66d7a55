head -c 1000 /dev/urandom >disk
before=$(sum disk)
refused 512 --kernel "$LINUX" --disk path=disk,format=raw
want 'sum of the image' "$(sum disk)" "$before"
