package node

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"bocage.dev/bocage"
)

// Word is one word that travels between rooms: who alone writes it, what
// carries it, who reads it.
type Word struct {
	Name    string
	Writer  string
	Carrier string
	Readers []string
}

// Graph lists the words in the order of the loop. The kinds' writers come from
// bocage.Kinds, where the api room reads them too, so the picture cannot drift
// from what the program allows.
func Graph() []Word {
	var words []Word
	readers := map[string][]string{
		"Workload": {"policy", "recognition"}, "Host": {"policy", "recognition"},
		"Incident": {"people"}, "Generation": {"people"}, "Event": {"people"}, "RoleBinding": {"api"},
	}
	kinds := bocage.Kinds()
	word := func(name, writer, carrier string, readers ...string) {
		words = append(words, Word{name, writer, carrier, readers})
	}
	resources := func(writer string) {
		for _, k := range kinds {
			if k.Writer == writer {
				read := readers[k.Name]
				if read == nil {
					read = []string{"policy"} // what people declare is policy's to merge
				}
				word(k.Name, writer, "store", read...)
			}
		}
	}
	resources("api")
	resources("policy")
	word("Ruleset", "policy", "exchange", "dataplane", "inspection", "deception")
	word("Sightings", "dataplane", "exchange", "api")
	word("Confirmation", "policy", "exchange", "dataplane")
	word("map entries", "dataplane", "kernel maps", "dataplane/bpf")
	word("FlowEvent", "dataplane", "stream", "recognition")
	word("InspectionEvent", "inspection", "stream", "recognition")
	word("EngagementEvent", "deception", "stream", "recognition")
	word("Evidence", "recognition", "store", "people")
	resources("recognition")
	resources("node")
	return words
}

// WriteGraph prints the words as an aligned table.
func WriteGraph(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WORD\tWRITTEN BY\tCARRIED BY\tREAD BY")
	for _, word := range Graph() {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", word.Name, word.Writer, word.Carrier, strings.Join(word.Readers, ", "))
	}
	return tw.Flush()
}
