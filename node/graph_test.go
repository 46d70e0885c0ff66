package node

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

// TestGraphIsInArchitecture ties the printed graph to the document that people read.
func TestGraphIsInArchitecture(t *testing.T) {
	var graph bytes.Buffer
	if err := WriteGraph(&graph); err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(document), graph.String()) {
		t.Errorf("ARCHITECTURE.md does not hold the output of `bocage graph`; paste this:\n%s", graph.String())
	}
}

// TestOneWriterPerWord holds the law that every word has exactly one writer.
func TestOneWriterPerWord(t *testing.T) {
	seen := map[string]string{}
	for _, word := range Graph() {
		if other, twice := seen[word.Name]; twice {
			t.Errorf("%s is written by %s and by %s", word.Name, other, word.Writer)
		}
		if word.Writer == "" || word.Carrier == "" || len(word.Readers) == 0 {
			t.Errorf("%s lacks a writer, a carrier or a reader", word.Name)
		}
		seen[word.Name] = word.Writer
	}
	for _, kind := range bocage.Kinds() {
		if _, ok := seen[kind.Name]; !ok {
			t.Errorf("kind %s is not in the graph: its writer %q is no room", kind.Name, kind.Writer)
		}
	}
}
