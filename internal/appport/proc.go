package appport

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// readProc finds the addresses in /proc/net.
func readProc(port int) ([]netip.Addr, error) {
	var out []netip.Addr
	var errs []error
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(file)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
				errs = append(errs, err)
			}
			continue
		}
		found, err := parse(f, port)
		out = append(out, found...)
		errs = append(errs, err, f.Close())
	}
	return out, errors.Join(errs...)
}

// listen is the state LISTEN in /proc/net/tcp (proc(5)).
const listen = "0A"

func parse(r io.Reader, port int) (out []netip.Addr, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 4 || words[3] != listen {
			continue
		}
		at, err := address(words[1])
		if err != nil {
			return out, err
		}
		if int(at.Port()) == port {
			out = append(out, at.Addr())
		}
	}
	return out, lines.Err()
}

// address reads "0100007F:1F90": words of four bytes in the host's order, which is little
// endian wherever Envoy runs, and the port.
func address(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err := cmp.Or(err, err2); err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("socket %.60q: no address of proc", text)
	}
	for i := 0; i < len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("socket %.60q: no address of proc", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}
