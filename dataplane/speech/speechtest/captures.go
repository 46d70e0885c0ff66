// Package speechtest holds how real programs begin to speak, and what is near that.
package speechtest

import (
	"bufio"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/speech"
)

//go:embed testdata/captures.txt
var captures string

//go:embed testdata/openings.txt
var openings string

// Capture is how a real program began to speak.
type Capture struct {
	Protocol bocage.AppProtocol
	Datagram bool
	Program  string
	Asks     []byte
	Answers  []byte // nil: nothing was answered
}

// Captures returns what testdata/captures.txt holds: mostly recorded.
func Captures() ([]Capture, error) { return parse("captures", captures) }

// Openings returns what testdata/openings.txt holds: many versions and forms of each
// protocol, by its specification.
func Openings() ([]Capture, error) { return parse("openings", openings) }

func parse(name, text string) ([]Capture, error) {
	var all []Capture
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0 || fields[0] == "#":
		case len(fields) == 3:
			c := Capture{Datagram: fields[1] == "udp", Program: fields[2]}
			if err := c.Protocol.UnmarshalText([]byte(fields[0])); err != nil {
				return nil, fmt.Errorf("%s, line %d: %w", name, n, err)
			}
			all = append(all, c)
		case len(fields) == 2 && len(all) > 0:
			b, err := hex.DecodeString(fields[1])
			if err != nil {
				return nil, fmt.Errorf("%s, line %d: %w", name, n, err)
			}
			if fields[0] == "asks" {
				all[len(all)-1].Asks = b
			} else {
				all[len(all)-1].Answers = b
			}
		default:
			return nil, fmt.Errorf("%s, line %d: neither a program nor what it says", name, n)
		}
	}
	return all, nil
}

// Sides returns what is heard of both directions.
func (c Capture) Sides() []speech.Heard {
	sides := []speech.Heard{{Bytes: c.Asks}}
	if len(c.Answers) > 0 {
		sides = append(sides, speech.Heard{Bytes: c.Answers, Answers: true, Asked: c.Asks[:min(len(c.Asks), speech.AskedWindow)]})
	}
	for i := range sides {
		if c.Datagram {
			sides[i].Datagram = len(sides[i].Bytes)
		}
		sides[i].Bytes = sides[i].Bytes[:min(len(sides[i].Bytes), speech.Window)]
	}
	return sides
}
