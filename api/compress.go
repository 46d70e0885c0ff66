package api

import (
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// compressFrom is the size from which on answers are compressed for those who
// take that: below, it costs more than it saves.
const compressFrom = 128 << 10

// compressed returns where to write an answer of about so many bytes, and says in
// its header how it is encoded. Closing it ends the answer.
func (c *call) compressed(size int) io.WriteCloser {
	c.w.Header().Add("Vary", "Accept-Encoding")
	if size < compressFrom || !takesGzip(c.r.Header.Get("Accept-Encoding")) {
		return plain{c.w}
	}
	// The level exists, so there is no error.
	out, _ := gzip.NewWriterLevel(c.w, gzip.BestSpeed)
	c.w.Header().Set("Content-Encoding", "gzip")
	return out
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

func takesGzip(accept string) bool {
	for _, part := range strings.Split(accept, ",") {
		coding, q, _ := strings.Cut(part, ";")
		if strings.TrimSpace(coding) == "gzip" && strings.Trim(strings.TrimSpace(q), "q=0.") != "" || strings.TrimSpace(part) == "gzip" {
			return true
		}
	}
	return false
}
