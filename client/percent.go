package client

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"unsafe"
)

// whole is 100 percent. Shares are integers, in hundredths of a percent, so that
// every language divides calls alike.
const whole = 10_000

// ParsePercent reads a percent as the convention has it, in hundredths, also for those who
// follow the same keys and variables without this package: digits, and optionally a point and up to two decimals, which
// zeros may follow. White space around it is ignored, since editors and echo add it.
// What is longer than maxValue is not read to its end, and no percent.
func ParsePercent(s string) (hundredths int, ok bool) {
	if len(s) > maxValue {
		return 0, false
	}
	s = strings.Trim(s, " \t\r\n")
	units, decimals, point := strings.Cut(s, ".")
	if units == "" || len(units) > 3 || point && decimals == "" {
		return 0, false
	}
	if len(decimals) > 2 {
		if strings.Trim(decimals[2:], "0") != "" {
			return 0, false
		}
		decimals = decimals[:2]
	}
	for _, c := range []byte(units + (decimals + "00")[:2]) {
		if c < '0' || c > '9' {
			return 0, false
		}
		hundredths = hundredths*10 + int(c-'0')
	}
	return hundredths, hundredths <= whole
}

// bucket is where a key falls among whole places. It is part of the convention.
func bucket(key string) int {
	// A view of the string: Sum256 does not keep it, and a copy would cost an allocation per call.
	sum := sha256.Sum256(unsafe.Slice(unsafe.StringData(key), len(key)))
	return int(binary.BigEndian.Uint32(sum[:4]) % whole)
}

// isNew is the choice itself: whether a call takes the new way at a share. Only
// between the ends does it look at the key, or draw when there is none.
func isNew(share int, key string, draw func(n int) int) bool {
	switch {
	case share <= 0:
		return false
	case share >= whole:
		return true
	case key != "":
		return bucket(key) < share
	default:
		return draw(whole) < share
	}
}
