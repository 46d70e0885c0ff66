package api

import (
	"bufio"
	"strings"
)

// indenter indents the JSON that is written to it as it comes, as json.Indent does with
// the whole: a list that people read takes no more memory than one that programs read.
// It does not look whether what comes is JSON.
type indenter struct {
	out     *bufio.Writer
	depth   int
	opened  bool // the last was { or [: what follows begins a line, unless it closes
	quoted  bool // within a string
	escaped bool // after a backslash in it
}

// Write implements io.Writer.
func (i *indenter) Write(data []byte) (int, error) {
	for _, b := range data {
		i.put(b)
	}
	_, err := i.out.Write(nil) // the first error of the writer stays with it
	return len(data), err
}

func (i *indenter) put(b byte) {
	switch {
	case i.escaped:
		i.escaped = false
	case i.quoted:
		i.escaped = b == '\\'
		i.quoted = b != '"'
	case b == ' ' || b == '\t' || b == '\r' || b == '\n':
		if i.depth == 0 {
			break // behind the value
		}
		return
	case b == '}' || b == ']':
		i.depth--
		if !i.opened {
			i.line()
		}
		i.opened = false
	default:
		if i.opened {
			i.line()
		}
		i.opened = b == '{' || b == '['
		i.quoted = b == '"'
	}
	_ = i.out.WriteByte(b)
	if i.quoted {
		return
	}
	switch b {
	case '{', '[':
		i.depth++
	case ',':
		i.line()
	case ':':
		_ = i.out.WriteByte(' ')
	}
}

func (i *indenter) line() {
	_ = i.out.WriteByte('\n')
	_, _ = i.out.WriteString(strings.Repeat("  ", i.depth))
}
