package lab

import (
	"bufio"
	"bytes"
	"testing"
)

func TestRESP(t *testing.T) {
	if got := encodeRESP([]string{"SET", "k", "v\r\n"}); got != "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\nv\r\n\r\n" {
		t.Errorf("encoded %q", got)
	}
	for _, c := range []struct {
		reply, value string
		found, fails bool
	}{
		{"+OK\r\n", "OK", true, false},
		{":12\r\n", "12", true, false},
		{"$3\r\na\r\n\r\n", "a\r\n", true, false},
		{"$0\r\n\r\n", "", true, false},
		{"$-1\r\n", "", false, false},
		{"$-2\r\n", "", false, true},
		{"$99999999999\r\n", "", false, true},
		{"-ERR no\r\n", "", false, true},
		{"*1\r\n", "", false, true},
		{"\r\n", "", false, true},
		{"$3\r\na", "", false, true},
		{"", "", false, true},
	} {
		value, found, err := decodeRESP(bufio.NewReader(bytes.NewReader([]byte(c.reply))))
		if (err != nil) != c.fails || found != c.found || string(value) != c.value {
			t.Errorf("%q: %q, %v, %v", c.reply, value, found, err)
		}
	}
}

func FuzzRESP(f *testing.F) {
	f.Add([]byte("$3\r\nabc\r\n"))
	f.Add([]byte("$1048576\r\n"))
	f.Fuzz(func(t *testing.T, reply []byte) {
		value, found, err := decodeRESP(bufio.NewReader(bytes.NewReader(reply)))
		if len(value) > len(reply) || err != nil && found {
			t.Errorf("%q: %q, %v, %v", reply, value, found, err)
		}
	})
}
