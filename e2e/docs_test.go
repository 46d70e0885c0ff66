// Package e2e tests the product as its users meet it: the documents' examples,
// the command line, and whole data centers.
package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"bocage.dev/bocage/manifest"
)

// yamlBlock finds what is shown as YAML, and what a shell's lines hold of it.
var yamlBlock = regexp.MustCompile("(?s)(?:```yaml|<<YAML)\n(.*?)(?:```|\nYAML\n)")

// TestDocumentedObjects reads every YAML example of the documents as the product
// does: strictly, with all faults.
func TestDocumentedObjects(t *testing.T) {
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range append(files, "../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, block := range yamlBlock.FindAllSubmatch(text, -1) {
			name := fmt.Sprintf("%s, example %d", filepath.Base(file), i+1)
			documents, faults := manifest.Read(name, block[1])
			if err := faults.Err(); err != nil {
				t.Errorf("%s:\n%v", name, err)
			}
			found += len(documents)
		}
	}
	if found < 10 {
		t.Errorf("only %d objects in the documents: is the search for examples broken?", found)
	}
}
