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
	"regexp"
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
	// bytesPerValue is how large the values of a file are that may be larger.
	bytesPerValue = 5
	// bytesPerDocument says the same of documents.
	bytesPerDocument = 100
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
	// apply wants them, in the version in which they were written, with the source
	// annotation and the namespace.
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
	// Foreign, if set, is asked about objects of kinds that are none of
	// bocage.Kinds, such as Pods. It returns their faults; without it, to be
	// foreign is one. Kinds that only look foreign stay faults: misspelled ones, those
	// of groups that are only like ours, and other versions of policies that are read.
	// With it, an empty list is no fault.
	Foreign func(*Tree) bocage.Faults
	// Note, if set, is told what was read otherwise than kubectl reads it, and what
	// is allowed but hardly meant: as Tree.Notes has it, that about y and n once a file.
	Note func(bocage.Fault)
	// Seen, if set, is shared by several calls, whose paths are read as one then.
	Seen *Seen
	// MaxBytes is the largest file; 0 is the package's MaxBytes. What else is
	// bounded grows with it.
	MaxBytes int
}

func (r Reader) bounds() bounds {
	if r.MaxBytes <= 0 {
		return bounds{MaxBytes, maxValues, maxDocuments}
	}
	return bounds{r.MaxBytes, max(maxValues, r.MaxBytes/bytesPerValue), max(maxDocuments, r.MaxBytes/bytesPerDocument)}
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
	var documents []Document
	faults := r.Each(name, data, func(d Document) { documents = append(documents, d) })
	return documents, faults
}

// ReadPath reads a file, every .yaml, .yml and .json file of a directory tree,
// or standard input ("-").
func (r Reader) ReadPath(path string) ([]Document, bocage.Faults) {
	var documents []Document
	faults := r.EachPath(path, func(d Document) { documents = append(documents, d) })
	return documents, faults
}

// Each is Read for many documents: each is called with one after another, and
// what it does not keep takes no memory afterwards.
func (r Reader) Each(name string, data []byte, each func(Document)) bocage.Faults {
	one := r.reading(each)
	one.file(name, data)
	return inOrder(one.faults)
}

// EachPath is ReadPath for many documents, as Each is Read.
func (r Reader) EachPath(path string, each func(Document)) bocage.Faults {
	files, faults := filesAt(path)
	all := r.reading(each)
	all.faults = faults
	for _, file := range files {
		if !all.Seen.file(file) {
			continue
		}
		name, data, err := readFile(file, r.bounds().bytes)
		if err != nil {
			all.faults = append(all.faults, bocage.Fault{Source: name, Message: err.Error()})
			continue
		}
		all.file(name, data)
	}
	return inOrder(all.faults)
}

// reading is one pass over one or more files.
type reading struct {
	Reader
	each    func(Document)
	faults  bocage.Faults
	notes   bocage.Faults // about the present file
	checker *checker
}

func (r Reader) reading(each func(Document)) *reading {
	if r.Seen == nil {
		r.Seen = NewSeen()
	}
	return &reading{Reader: r, each: each, checker: newChecker()}
}

func (r *reading) file(name string, data []byte) {
	found, before := 0, len(r.faults)
	r.notes = nil
	defer func() { tellNotes(r.notes, r.Note) }()
	r.faults = append(r.faults, parse(name, data, r.bounds(), func(tree *Tree) {
		list := tree.items(r.Foreign != nil, &r.faults, func(item *Tree) {
			found++
			r.item(item)
		})
		if list && r.Foreign != nil {
			found++ // what a cluster prints where it has none
		}
	})...)
	if found == 0 && len(r.faults) == before {
		r.faults = append(r.faults, bocage.Fault{Source: name, Message: "holds no object"})
	}
}

// item reads one object and passes it on if it has no fault, nor was declared before.
func (r *reading) item(tree *Tree) {
	if r.Foreign != nil {
		if faults := tree.misspelled(); len(faults) > 0 {
			r.faults = append(r.faults, tree.tell(faults)...)
			return
		}
	}
	if r.Foreign != nil && tree.foreign() {
		r.foreigner(tree)
		return
	}
	document, faults := r.document(tree, r.checker)
	r.notes = append(r.notes, tree.notes...)
	r.faults = append(r.faults, tree.tell(faults)...)
	if len(faults) > 0 {
		return
	}
	meta, typ := document.Resource.Meta(), document.Resource.Type()
	k := objectKey{bocage.Kind{APIVersion: typ.APIVersion}.Group(), typ.Kind, meta.Namespace, meta.Name}
	if r.again(tree, k) {
		return
	}
	if faults := r.Seen.once(tree, k); len(faults) > 0 {
		r.faults = append(r.faults, faults...)
		return
	}
	r.each(document)
}

// foreigner has an object of another kind looked at.
func (r *reading) foreigner(tree *Tree) {
	version, _ := tree.Text("apiVersion")
	k := objectKey{group: bocage.Kind{APIVersion: version}.Group()}
	k.kind, _ = tree.Text("kind")
	k.namespace, _ = tree.Text("metadata", "namespace")
	k.name, _ = tree.Text("metadata", "name")
	faults := tree.unquoted()
	tree.foreignLetters()
	if len(faults) == 0 && r.again(tree, k) {
		return
	}
	if len(faults) == 0 {
		faults = tree.tell(tree.place(tree.quote(r.Foreign(tree))))
	}
	r.notes = append(r.notes, tree.notes...)
	if len(faults) == 0 {
		faults = r.Seen.once(tree, k)
	}
	r.faults = append(r.faults, faults...)
}

// again reports whether an object was read before, just as it is here.
func (r *reading) again(tree *Tree, k objectKey) bool {
	source, same := r.Seen.same(tree, k)
	if same {
		r.notes = append(r.notes, bocage.Fault{Source: tree.Source(""), Message: fmt.Sprintf("%s %s stands at %s just the same: it counts once", k.kind, k, source)})
	}
	return same
}

// document turns one tree into the object that it declares.
func (r Reader) document(tree *Tree, c *checker) (Document, bocage.Faults) {
	kind, faults := tree.kind()
	if len(faults) > 0 {
		return Document{}, faults
	}
	unknown, wrong := c.document(tree, kind)
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
	found := append(resource.Validate(), generateNameFaults(meta.GenerateName)...)
	switch resource.(type) {
	case *bocage.NetworkPolicy, *bocage.ClusterNetworkPolicy: // as upstream refuses them
		found = append(found, bocage.ValidateAnnotations(meta.Annotations)...)
	}
	for _, fault := range document.Place(found) {
		if !follows(fault.Field, wrong) && !emptied(fault.Field, unknown) {
			faults = append(faults, fault)
		}
	}
	if len(faults) > 0 {
		return Document{}, faults
	}
	if policy, ok := resource.(*bocage.NetworkPolicy); ok {
		tree.notes = append(tree.notes, document.Place(policy.Warnings())...)
	}
	object := tree.Object()
	resource.Type().APIVersion = kind.APIVersion
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

// subdomain is what names look like.
var subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// generateNameFaults checks what a name would be drawn from, beside a name, too, as
// Kubernetes does.
func generateNameFaults(prefix string) bocage.Faults {
	var faults bocage.Faults
	name := prefix
	if len(name) > 1 && strings.HasSuffix(name, "-") {
		name = name[:len(name)-2] + "a" // letters follow
	}
	if prefix != "" && (len(name) > 253 || !subdomain.MatchString(name)) {
		faults.Add("metadata.generateName", "%q is not the beginning of a lower-case DNS name of at most 253 characters", prefix)
	}
	return faults
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

// emptied reports whether a field's fault may come from an unknown field in it,
// which was read as if it were not there.
func emptied(field string, unknown bocage.Faults) bool {
	return slices.ContainsFunc(unknown, func(u bocage.Fault) bool {
		i := strings.LastIndexByte(u.Field, '.')
		return i > 0 && u.Field[:i] == field
	})
}

// replaced names the tier of a ClusterNetworkPolicy that does what a kind did which it
// has replaced; "" for other kinds.
func replaced(apiVersion, kind string) string {
	switch {
	case !strings.HasPrefix(apiVersion, "policy.networking.k8s.io/"):
	case kind == "AdminNetworkPolicy":
		return bocage.TierAdmin
	case kind == "BaselineAdminNetworkPolicy":
		return bocage.TierBaseline
	}
	return ""
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
	case replaced(version, name) != "":
		faults.Add("kind", "%s was replaced upstream: write a ClusterNetworkPolicy (apiVersion: %s) with tier: %s", name, bocage.ClusterNetworkPolicyAPIVersion, replaced(version, name))
		return bocage.Kind{}, t.place(faults)
	case !slices.ContainsFunc(bocage.Kinds(), func(k bocage.Kind) bool { return k.Reads(version) }):
		faults.Add("apiVersion", "%q is not understood: this system knows %s", version, strings.Join(apiVersions(), ", "))
	}
	if !hasKind {
		faults.Add("kind", "is missing: name one of %s", strings.Join(kindNames(), ", "))
		return bocage.Kind{}, t.place(faults)
	}
	for _, kind := range bocage.Kinds() {
		if kind.Name == name {
			if hasVersion && len(faults) == 0 && !kind.Reads(version) {
				faults.Add("apiVersion", "%q has no %s: write apiVersion: %s", version, name, kind.APIVersion)
			}
			return kind, t.place(faults)
		}
	}
	if len(faults) > 0 && hasVersion {
		return bocage.Kind{}, t.place(faults)
	}
	near := nearest(name, kindNames())
	if meant, ok := meantBy(version, name); near == "" && ok && slices.Contains(kindNames(), meant.kind) {
		near = meant.kind
	}
	if near != "" {
		faults.Add("kind", "%q is unknown: did you mean %s?", name, near)
	} else {
		faults.Add("kind", "%q is unknown: the kinds are %s", name, strings.Join(kindNames(), ", "))
	}
	return bocage.Kind{}, t.place(faults)
}

// items passes on the documents inside a list, or the tree itself. It reports whether
// the tree is a list.
func (t *Tree) items(foreign bool, faults *bocage.Faults, each func(*Tree)) bool {
	name, _ := t.Text("kind")
	version, _ := t.Text("apiVersion")
	of, isList := strings.CutSuffix(name, "List")
	items := t.node.value("items")
	switch {
	case t.node.Kind == sequence && len(t.node.Content) > 0 && t.node.Content[0].value("kind") != nil:
		items, of = t.node, "" // a bare list of objects
	case !isList || !(version == "v1" || slices.Contains(apiVersions(), version)) && !(foreign && items != nil):
		each(t)
		return false
	case items == nil || items.Kind == scalar && items.Tag == "!!null":
		return true // kubectl writes an empty list so
	case items.Kind != sequence:
		var wrong bocage.Faults
		wrong.Add("items", "is %s where a list of objects is needed", describe(items))
		*faults = append(*faults, t.place(wrong)...)
		return true
	}
	for _, item := range items.Content {
		// The items of a list of one kind need not name it.
		if of != "" && item.Kind == mapping && item.value("kind") == nil && item.value("apiVersion") == nil {
			named := *item
			named.Content = append([]*node{text("apiVersion", item.Line), text(version, item.Line), text("kind", item.Line), text(of, item.Line)}, item.Content...)
			item = &named
		}
		// Depth is bounded, so lists within lists end.
		(&Tree{name: t.name, node: item, letters: t.letters}).items(foreign, faults, each)
	}
	return true
}

func text(value string, line int) *node {
	return &node{Kind: scalar, Tag: "!!str", Value: value, Line: line}
}

// foreign reports whether the object is of a kind that is not read, and is not
// meant to be of one that is: Events of Kubernetes are nobody's declaration.
func (t *Tree) foreign() bool {
	version, hasVersion := t.Text("apiVersion")
	name, hasKind := t.Text("kind")
	if !hasVersion || !hasKind {
		return false
	}
	if name == "Event" {
		return true
	}
	group := bocage.Kind{APIVersion: version}.Group()
	switch {
	case group == bocage.Kind{APIVersion: bocage.APIVersion}.Group(), group == bocage.Kind{APIVersion: bocage.ClusterNetworkPolicyAPIVersion}.Group():
		return false
	case group == "extensions":
		return name != "NetworkPolicy" // it lived there once
	}
	return !slices.ContainsFunc(bocage.Kinds(), func(k bocage.Kind) bool { return k.Name == name && k.Group() == group })
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
		for _, version := range append([]string{k.APIVersion}, k.Later...) {
			if !slices.Contains(versions, version) {
				versions = append(versions, version)
			}
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
func readFile(file string, most int) (name string, data []byte, err error) {
	if file == "-" {
		data, err = io.ReadAll(io.LimitReader(os.Stdin, int64(most)+1))
		return "stdin", data, err
	}
	f, err := os.Open(file)
	if err != nil {
		return file, nil, errors.New(cause(err))
	}
	defer f.Close()
	data, err = io.ReadAll(io.LimitReader(f, int64(most)+1))
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
