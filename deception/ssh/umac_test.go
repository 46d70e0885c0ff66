package ssh

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
)

// Vectors of RFC 4418, appendix.
func TestUMAC(t *testing.T) {
	nonce := binary.BigEndian.Uint64([]byte("bcdefghi"))
	for _, c := range []struct {
		message string
		want    string
	}{
		{"", "6E155FAD26900BE1"},
		{strings.Repeat("a", 3), "44B5CB542F220104"},
		{strings.Repeat("a", 1<<10), "26BF2F5D60118BD9"},
		{strings.Repeat("a", 1<<15), "27F8EF643B0D118D"},
		{"abc", "D4D7B9F6BD4FBFCF"},
		{strings.Repeat("abc", 500), "D4CF26DDEFD5C01A"},
	} {
		got := strings.ToUpper(hex.EncodeToString(newUmac([]byte("abcdefghijklmnop"), 8).tag(nonce, []byte(c.message))))
		if got != c.want {
			t.Errorf("UMAC-64 of %d bytes is %s, want %s", len(c.message), got, c.want)
		}
	}
}
