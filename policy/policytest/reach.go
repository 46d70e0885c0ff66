package policytest

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/txtar"

	"bocage.dev/bocage"
)

// ReachCase is a cluster's policies and what reaches what under them.
type ReachCase struct {
	Name     string
	Policies string // YAML documents
	// Table has lines such as "TCP/80 x/* -> 192.0.2.1 yes", or "-> 192.0.2.1=example.org"
	// for what the DNS said of the address; a later one overrides an earlier one.
	Table string
}

// ReachCell is one line of a table for one pair of ends.
type ReachCell struct {
	Protocol bocage.Protocol
	Port     uint16
	From, To string            // namespace/name of a Pod, or an address
	Name     bocage.DomainName // by which the DNS told From of To, if it did
	Reaches  bool
}

// ReadReachCases reads an archive of files "NAME: policies" and "NAME: reach".
func ReadReachCases(path string) ([]ReachCase, error) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		return nil, err
	}
	var cases []ReachCase
	for i := 0; i+1 < len(archive.Files); i += 2 {
		name, is := strings.CutSuffix(archive.Files[i].Name, ": policies")
		if !is || archive.Files[i+1].Name != name+": reach" {
			return nil, fmt.Errorf("%s: after %q stands %q", path, archive.Files[i].Name, archive.Files[i+1].Name)
		}
		cases = append(cases, ReachCase{name, string(archive.Files[i].Data), string(archive.Files[i+1].Data)})
	}
	if len(archive.Files)%2 != 0 || len(cases) == 0 {
		return nil, fmt.Errorf("%s holds %d files: each case has two", path, len(archive.Files))
	}
	return cases, nil
}

// Cells are the table's for these Pods, in the order in which they are first named.
func (c ReachCase) Cells(pods []string) ([]ReachCell, error) {
	var cells []ReachCell
	at := map[ReachCell]int{}
	for line := range strings.Lines(c.Table) {
		fields := strings.Fields(line)
		if len(fields) != 5 || fields[2] != "->" || fields[4] != "yes" && fields[4] != "no" {
			return nil, fmt.Errorf("%q is not such as TCP/80 x/* -> y/a yes", line)
		}
		protocol, port, err := portOf(fields[0])
		if err != nil {
			return nil, err
		}
		destination, heard, named := strings.Cut(fields[3], "=")
		var name bocage.DomainName
		if named {
			if name, err = bocage.ParseDomainName(heard); err != nil {
				return nil, err
			}
		}
		from, to := ends(pods, fields[1]), ends(pods, destination)
		if len(from) == 0 || len(to) == 0 {
			return nil, fmt.Errorf("%q names nobody", line)
		}
		for _, a := range from {
			for _, b := range to {
				cell := ReachCell{Protocol: protocol, Port: port, From: a, To: b, Name: name}
				i, again := at[cell]
				if !again {
					i = len(cells)
					at[cell], cells = i, append(cells, cell)
				}
				cells[i].Reaches = fields[4] == "yes"
			}
		}
	}
	return cells, nil
}

func portOf(text string) (bocage.Protocol, uint16, error) {
	name, number, _ := strings.Cut(text, "/")
	protocol, err := bocage.ParseProtocol(name)
	if err != nil || number == "" {
		return protocol, 0, err
	}
	port, err := strconv.ParseUint(number, 10, 16)
	return protocol, uint16(port), err
}

// ends expands *, namespace/*, namespace/name or an address.
func ends(pods []string, pattern string) []string {
	if _, err := netip.ParseAddr(pattern); err == nil {
		return []string{pattern}
	}
	var out []string
	for _, name := range pods {
		namespace, _, _ := strings.Cut(name, "/")
		if pattern == "*" || pattern == name || pattern == namespace+"/*" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
