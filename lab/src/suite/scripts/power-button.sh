# acpid runs this when the kernel reports the button.
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\necho pressed >/tmp/pressed\n' >/etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid -f >/dev/null 2>&1 &
echo 'press now'
wait_until 30 test -e /tmp/pressed || fail 'nobody pressed the power button'
echo 'was pressed'
