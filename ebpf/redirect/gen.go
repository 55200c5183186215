package redirect

//go:generate go tool bpf2go -tags linux connect ../bpf/connect.c -- -O2 -mcpu=v2 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -tags linux lookup ../bpf/lookup.c -- -O2 -mcpu=v2 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -tags linux probe ../bpf/probe.c -- -O2 -mcpu=v2 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
