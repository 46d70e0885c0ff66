// Package manifest reads declarations from YAML and JSON files and writes
// resources back as YAML.
//
// It promises every fault of every document at once, each with its file, line
// and field path: broken syntax, unknown kinds, unknown fields (with the name
// that was probably meant), keys given twice, wrong types, numbers out of range,
// objects declared twice, and whatever the kind's own Validate finds. What it
// returns without faults can be applied as it is. Files are bounded in size,
// depth and number of values, and aliases cannot expand without limit.
//
// It never asks what other objects exist: that is policy's business.
package manifest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// Limits of what is read.
const (
	// MaxBytes is the largest file or body.
	MaxBytes = 10 << 20
	// maxDepth is the deepest nesting of maps and lists.
	maxDepth = 64
	// maxDocuments bounds the documents of one file.
	maxDocuments = 10_000
	// maxValues bounds the values of one file, and so the memory that reading takes.
	maxValues = 1 << 20
	// maxAliased bounds the values that aliases add to one document.
	maxAliased = 100_000
	// maxFiles bounds the files of one directory tree.
	maxFiles = 10_000
	// maxFaults bounds what one file reports.
	maxFaults = 1000
)

// Document is one declared object.
type Document struct {
	// Resource is the object, with bocage.SourceAnnotation set to Source if the
	// file has a name.
	Resource bocage.Resource
	// JSON holds the fields that were written and no others, as server-side
	// apply wants them, with the source annotation and the namespace.
	JSON []byte
	// Source is where the object starts: file:line, or "line N" without a name.
	Source string

	tree *Tree
}

// Place fills in the Source of faults that have none, from their field paths.
func (d Document) Place(faults bocage.Faults) bocage.Faults {
	placed := make(bocage.Faults, len(faults))
	for i, fault := range faults {
		if fault.Source == "" {
			fault.Source = d.tree.Source(fault.Field)
		}
		placed[i] = fault
	}
	return placed
}

// Reader reads documents.
type Reader struct {
	// Namespace is given to namespaced objects that name none.
	Namespace string
}

// Read reads every document of data into the namespace "default". name is the
// file's, for messages.
func Read(name string, data []byte) ([]Document, bocage.Faults) {
	return Reader{Namespace: "default"}.Read(name, data)
}

// ReadPath reads a file, every .yaml, .yml and .json file of a directory tree,
// or standard input ("-") into the namespace "default".
func ReadPath(path string) ([]Document, bocage.Faults) {
	return Reader{Namespace: "default"}.ReadPath(path)
}

// Read reads every document of data. name is the file's, for messages; without
// one, objects keep the source annotation that they have.
func (r Reader) Read(name string, data []byte) ([]Document, bocage.Faults) {
	documents, faults := r.read(name, data)
	return documents, inOrder(append(faults, twice(documents)...))
}

// ReadPath reads a file, every .yaml, .yml and .json file of a directory tree,
// or standard input ("-").
func (r Reader) ReadPath(path string) ([]Document, bocage.Faults) {
	files, faults := filesAt(path)
	var documents []Document
	for _, file := range files {
		name, data, err := readFile(file)
		if err != nil {
			faults = append(faults, bocage.Fault{Source: name, Message: err.Error()})
			continue
		}
		found, wrong := r.read(name, data)
		documents, faults = append(documents, found...), append(faults, wrong...)
	}
	return documents, inOrder(append(faults, twice(documents)...))
}

func (r Reader) read(name string, data []byte) ([]Document, bocage.Faults) {
	trees, faults := Parse(name, data)
	var documents []Document
	found := 0
	for _, tree := range trees {
		for _, item := range tree.items(&faults) {
			found++
			document, wrong := r.document(item)
			if faults = append(faults, wrong...); len(wrong) == 0 {
				documents = append(documents, document)
			}
		}
	}
	if found == 0 && len(faults) == 0 {
		faults = append(faults, bocage.Fault{Source: name, Message: "holds no object"})
	}
	return documents, faults
}

// document turns one tree into the object that it declares.
func (r Reader) document(tree *Tree) (Document, bocage.Faults) {
	kind, faults := tree.kind()
	if len(faults) > 0 {
		return Document{}, faults
	}
	unknown, wrong := tree.Check(kind)
	resource := kind.New()
	if err := json.Unmarshal(tree.JSON(), resource); err != nil {
		wrong.Add("", "%v", err)
		return Document{}, tree.place(append(unknown, wrong...))
	}
	meta := resource.Meta()
	if kind.Namespaced && meta.Namespace == "" && r.Namespace != "" {
		meta.Namespace = r.Namespace
	}
	document := Document{Resource: resource, Source: tree.Source(""), tree: tree}
	faults = append(unknown, wrong...)
	for _, fault := range document.Place(resource.Validate()) {
		if !follows(fault.Field, wrong) {
			faults = append(faults, fault)
		}
	}
	if len(faults) > 0 {
		return Document{}, faults
	}
	object := tree.Object()
	metadata := object["metadata"].(map[string]any) // a name is required, so it is there
	if tree.name != "" {
		if meta.Annotations == nil {
			meta.Annotations = map[string]string{}
		}
		meta.Annotations[bocage.SourceAnnotation] = document.Source
		annotations, _ := metadata["annotations"].(map[string]any)
		if annotations == nil {
			annotations = map[string]any{}
			metadata["annotations"] = annotations
		}
		annotations[bocage.SourceAnnotation] = document.Source
	}
	if meta.Namespace != "" {
		metadata["namespace"] = meta.Namespace
	}
	var err error
	if document.JSON, err = json.Marshal(object); err != nil {
		faults.Add("", "%v", err)
		return Document{}, tree.place(faults)
	}
	return document, nil
}

// follows reports whether a field's fault may come from a wrong value in, below
// or above it, which was read as if it were empty.
func follows(field string, wrong bocage.Faults) bool {
	within := func(inner, outer string) bool {
		rest, ok := strings.CutPrefix(inner, outer)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[' || outer == "")
	}
	for _, w := range wrong {
		if within(field, w.Field) || within(w.Field, field) {
			return true
		}
	}
	return false
}

// kind finds the kind that a document names.
func (t *Tree) kind() (bocage.Kind, bocage.Faults) {
	var faults bocage.Faults
	version, hasVersion := t.Text("apiVersion")
	name, hasKind := t.Text("kind")
	switch {
	case !hasVersion && !hasKind && t.node.Kind != mapping:
		faults.Add("", "is %s where an object with apiVersion, kind, metadata and spec is needed", describe(t.node))
		return bocage.Kind{}, t.place(faults)
	case !hasVersion:
		faults.Add("apiVersion", "is missing: write apiVersion: %s", bocage.APIVersion)
	case !slices.ContainsFunc(bocage.Kinds(), func(k bocage.Kind) bool { return k.APIVersion == version }):
		faults.Add("apiVersion", "%q is not understood: this system knows %s", version, strings.Join(apiVersions(), ", "))
	}
	if !hasKind {
		faults.Add("kind", "is missing: name one of %s", strings.Join(kindNames(), ", "))
		return bocage.Kind{}, t.place(faults)
	}
	for _, kind := range bocage.Kinds() {
		if kind.Name == name {
			if hasVersion && len(faults) == 0 && kind.APIVersion != version {
				faults.Add("apiVersion", "%q has no %s: write apiVersion: %s", version, name, kind.APIVersion)
			}
			return kind, t.place(faults)
		}
	}
	if len(faults) > 0 && hasVersion {
		return bocage.Kind{}, t.place(faults)
	}
	if near := nearest(name, kindNames()); near != "" {
		faults.Add("kind", "%q is unknown: did you mean %s?", name, near)
	} else {
		faults.Add("kind", "%q is unknown: the kinds are %s", name, strings.Join(kindNames(), ", "))
	}
	return bocage.Kind{}, t.place(faults)
}

// items returns the documents inside a List, or the tree itself.
func (t *Tree) items(faults *bocage.Faults) []*Tree {
	name, _ := t.Text("kind")
	version, _ := t.Text("apiVersion")
	known := version == "v1" || slices.Contains(apiVersions(), version)
	list := known && strings.HasSuffix(name, "List")
	if !list {
		return []*Tree{t}
	}
	items := t.node.value("items")
	if items == nil {
		return nil
	}
	if items.Kind != sequence {
		var wrong bocage.Faults
		wrong.Add("items", "is %s where a list of objects is needed", describe(items))
		*faults = append(*faults, t.place(wrong)...)
		return nil
	}
	var out []*Tree
	for _, item := range items.Content {
		// Depth is bounded, so lists within lists end.
		out = append(out, (&Tree{name: t.name, node: item}).items(faults)...)
	}
	return out
}

// twice finds objects that are declared more than once.
func twice(documents []Document) bocage.Faults {
	type key struct{ kind, namespace, name string }
	first := make(map[key]string, len(documents))
	var faults bocage.Faults
	for _, d := range documents {
		meta := d.Resource.Meta()
		k := key{d.Resource.Type().Kind, meta.Namespace, meta.Name}
		if source, ok := first[k]; ok {
			faults = append(faults, bocage.Fault{
				Field: "metadata.name", Source: d.tree.Source("metadata.name"),
				Message: fmt.Sprintf("%s %s is declared at %s already", k.kind, meta.NamespacedName(), source),
			})
			continue
		}
		first[k] = d.Source
	}
	return faults
}

// inOrder sorts the faults of each file by line and leaves out those that nobody
// would read.
func inOrder(faults bocage.Faults) bocage.Faults {
	rank := make(map[string]int)
	line := make([]int, len(faults))
	file := make([]int, len(faults))
	order := make([]int, len(faults))
	for i, fault := range faults {
		name, number := fault.Source, 0
		if at := strings.LastIndexAny(name, ": "); at >= 0 {
			if n, err := strconv.Atoi(name[at+1:]); err == nil {
				name, number = name[:at], n
			}
		}
		if _, seen := rank[name]; !seen {
			rank[name] = len(rank)
		}
		order[i], file[i], line[i] = i, rank[name], number
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(file[a], file[b]), cmp.Compare(line[a], line[b]))
	})
	sorted := make(bocage.Faults, len(faults))
	for i, from := range order {
		sorted[i] = faults[from]
	}
	return limited(sorted)
}

func limited(faults bocage.Faults) bocage.Faults {
	if len(faults) <= maxFaults {
		return faults
	}
	more := bocage.Fault{Message: fmt.Sprintf("and %d more", len(faults)-maxFaults)}
	return append(faults[:maxFaults:maxFaults], more)
}

// apiVersions lists the group versions that are read, ours first.
func apiVersions() []string {
	var versions []string
	for _, k := range bocage.Kinds() {
		if !slices.Contains(versions, k.APIVersion) {
			versions = append(versions, k.APIVersion)
		}
	}
	return versions
}

func kindNames() []string {
	var names []string
	for _, k := range bocage.Kinds() {
		names = append(names, k.Name)
	}
	return names
}

// filesAt lists the files to read for a path, in lexical order.
func filesAt(path string) ([]string, bocage.Faults) {
	if path == "-" {
		return []string{path}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, bocage.Faults{{Source: path, Message: cause(err)}}
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var files []string
	var faults bocage.Faults
	err = filepath.WalkDir(path, func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			faults = append(faults, bocage.Fault{Source: file, Message: cause(err)})
			return nil
		case entry.IsDir() && file != path && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case entry.IsDir() || !isManifest(file):
			return nil
		}
		// A link counts as what it points to; a pipe in a directory would block.
		if info, err := os.Stat(file); err != nil {
			faults = append(faults, bocage.Fault{Source: file, Message: cause(err)})
		} else if info.Mode().IsRegular() {
			files = append(files, file)
		}
		if len(files) > maxFiles {
			return fmt.Errorf("holds more than %d files", maxFiles)
		}
		return nil
	})
	if err != nil {
		return nil, append(faults, bocage.Fault{Source: path, Message: err.Error()})
	}
	if len(files) == 0 && len(faults) == 0 {
		faults = append(faults, bocage.Fault{Source: path, Message: "holds no .yaml, .yml or .json file"})
	}
	return files, faults
}

func isManifest(file string) bool {
	switch strings.ToLower(filepath.Ext(file)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// readFile reads a file or standard input, one byte more than is allowed at most.
func readFile(file string) (name string, data []byte, err error) {
	if file == "-" {
		data, err = io.ReadAll(io.LimitReader(os.Stdin, MaxBytes+1))
		return "stdin", data, err
	}
	f, err := os.Open(file)
	if err != nil {
		return file, nil, errors.New(cause(err))
	}
	defer f.Close()
	data, err = io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return file, nil, errors.New(cause(err))
	}
	return file, data, nil
}

// cause leaves out the path that a fault's Source names already.
func cause(err error) string {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err.Error()
	}
	return err.Error()
}
