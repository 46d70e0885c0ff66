package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"bocage.dev/bocage"
)

// form is how a client wants its answer.
type form struct {
	as   string // Table, PartialObjectMetadata, PartialObjectMetadataList or nothing
	yaml bool
	// pretty says that people read it: JSON is indented.
	pretty bool
}

// formOf reads an Accept header: of the forms that can be made the one that the client
// likes most wins, the first of several; ok is false if none can. Who asks for nothing
// gets JSON.
func formOf(accept string) (f form, ok bool) {
	if strings.TrimSpace(accept) == "" {
		return form{}, true
	}
	best := 0.0
	for part := range strings.SplitSeq(accept, ",") {
		mediaType, params, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err != nil {
			continue
		}
		liked := 1.0
		if text, given := params["q"]; given {
			if liked, err = strconv.ParseFloat(text, 64); err != nil {
				continue
			}
		}
		if offered, can := offer(mediaType, params); can && liked > best {
			f, ok, best = offered, true, liked
		}
	}
	return f, ok
}

// offer is the form that a media type names, if it can be made.
func offer(mediaType string, params map[string]string) (form, bool) {
	as := params["as"]
	switch mediaType {
	case "application/yaml":
		return form{yaml: true}, as == ""
	case "*/*", "application/*":
		return form{}, true
	case "application/json":
		switch as {
		case "":
			return form{}, true
		case "Table", "PartialObjectMetadata", "PartialObjectMetadataList":
			return form{as: as}, params["v"] == "v1"
		}
	}
	return form{}, false
}

func notAcceptable() *problem {
	return newProblem(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable,
		"only the following media types are accepted: application/json, application/yaml, application/json;stream=watch")
}

// writeObject answers with one object in the form that the client wants.
func (c *call) writeObject(code int, value []byte) error {
	value, err := c.revealed(c.kind, value)
	if err != nil {
		return err
	}
	value = c.inVersion(value)
	switch c.form.as {
	case "Table":
		table, err := newTable(c.kind, c.query.Get("includeObject"))
		if err != nil {
			return err
		}
		row, err := table.row(value)
		if err != nil {
			return err
		}
		var of metav1.PartialObjectMetadata
		if err := json.Unmarshal(value, &of); err != nil {
			return err
		}
		head, err := table.head(metav1.ListMeta{ResourceVersion: of.ResourceVersion}, true)
		if err != nil {
			return err
		}
		return c.writeRaw(code, append(append(head, row...), "]}"...))
	case "PartialObjectMetadata":
		partial, err := partialJSON(value)
		if err != nil {
			return err
		}
		return c.writeRaw(code, partial)
	}
	return c.writeRaw(code, value)
}

func (c *call) writeRaw(code int, value []byte) error {
	contentType := "application/json"
	if c.form.yaml {
		text, err := yaml.JSONToYAML(value)
		if err != nil {
			return err
		}
		contentType, value = "application/yaml", text
	} else if c.form.pretty {
		var indented bytes.Buffer
		if err := json.Indent(&indented, value, "", "  "); err != nil {
			return err
		}
		value = indented.Bytes()
	}
	c.w.Header().Set("Content-Type", contentType)
	out := c.compressed(len(value))
	c.w.WriteHeader(code)
	_, _ = out.Write(value)
	if !c.form.yaml {
		_, _ = out.Write([]byte{'\n'})
	}
	_ = out.Close()
	return nil
}

// writeList answers with a collection in the form that the client wants, object
// by object, so that what it takes in memory does not grow with the list.
func (c *call) writeList(found *items) error {
	meta := metav1.ListMeta{
		ResourceVersion: formatRevision(found.revision), Continue: found.next, RemainingItemCount: found.remaining,
	}
	var head []byte
	shown := func(o *object) ([]byte, error) {
		value, err := c.revealed(c.kind, o.value)
		return c.inVersion(value), err
	}
	write := shown
	switch c.form.as {
	case "Table":
		table, err := newTable(c.kind, c.query.Get("includeObject"))
		if err != nil {
			return err
		}
		if head, err = table.head(meta, true); err != nil {
			return err
		}
		write = func(o *object) ([]byte, error) {
			value, err := shown(o)
			if err != nil {
				return nil, err
			}
			return table.row(value)
		}
	default:
		name, version := c.kind.Name+"List", c.version
		if strings.HasPrefix(c.form.as, "PartialObjectMetadata") {
			name, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
			write = func(o *object) ([]byte, error) { return partialJSON(o.value) }
		}
		data, err := json.Marshal(meta)
		if err != nil {
			return err
		}
		head = fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,"metadata":%s,"items":[`, name, version, data)
	}
	size := len(head)
	for _, o := range found.objects {
		if size += len(o.value); size >= compressFrom {
			break
		}
	}
	contentType := "application/json"
	if c.form.yaml {
		contentType = "application/yaml"
	}
	c.w.Header().Set("Content-Type", contentType)
	out := c.compressed(size)
	c.w.WriteHeader(http.StatusOK)
	buffered := bufio.NewWriterSize(out, 64<<10)
	var err error
	switch {
	case c.form.yaml:
		err = writeItemsYAML(buffered, head, found.objects, write)
	case c.form.pretty:
		err = writeItems(&indenter{out: buffered}, head, found.objects, write)
	default:
		err = writeItems(buffered, head, found.objects, write)
	}
	if err != nil {
		return err // the answer has begun: the connection is broken off
	}
	_ = buffered.Flush()
	_ = out.Close()
	return nil
}

func writeItems(out io.Writer, head []byte, objects []*object, write func(*object) ([]byte, error)) error {
	if _, err := out.Write(head); err != nil {
		return err
	}
	for i, o := range objects {
		data, err := write(o)
		if err != nil {
			return err
		}
		if i > 0 {
			data = append([]byte{','}, data...)
		}
		if _, err := out.Write(data); err != nil {
			return err
		}
	}
	_, err := io.WriteString(out, "]}\n")
	return err
}

// writeItemsYAML writes the same in YAML, one object after another.
func writeItemsYAML(out io.Writer, head []byte, objects []*object, write func(*object) ([]byte, error)) error {
	var rest map[string]any
	if err := json.Unmarshal(append(bytes.Clone(head), "]}"...), &rest); err != nil {
		return err
	}
	if len(objects) > 0 {
		delete(rest, "items")
	}
	text, err := yaml.Marshal(rest)
	if err != nil {
		return err
	}
	if len(objects) > 0 {
		text = append(text, "items:\n"...)
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	for _, o := range objects {
		data, err := write(o)
		if err != nil {
			return err
		}
		// A list of one is written as it stands in a longer one.
		if text, err = yaml.JSONToYAML(append(append([]byte{'['}, data...), ']')); err != nil {
			return err
		}
		if _, err := out.Write(text); err != nil {
			return err
		}
	}
	return nil
}

// inVersion shows an object in the version of the call. Versions differ in no field.
func (c *call) inVersion(value []byte) []byte {
	return otherVersion(value, c.kind.APIVersion, c.version)
}

// otherVersion writes an object's version, with which every stored object begins.
func otherVersion(value []byte, from, to string) []byte {
	rest, ok := bytes.CutPrefix(value, []byte(`{"apiVersion":"`+from+`"`))
	if !ok || from == to || to == "" {
		return value
	}
	out := make([]byte, 0, len(value)+len(to))
	return append(append(append(append(out, `{"apiVersion":"`...), to...), '"'), rest...)
}

// partialJSON keeps an object's metadata.
func partialJSON(value []byte) ([]byte, error) {
	var partial metav1.PartialObjectMetadata
	if err := json.Unmarshal(value, &partial); err != nil {
		return nil, err
	}
	partial.APIVersion, partial.Kind = "meta.k8s.io/v1", "PartialObjectMetadata"
	return json.Marshal(partial)
}

// bookmark is an object that only says how far a watch is.
func bookmark(kind bocage.Kind, revision string, annotations map[string]string) ([]byte, error) {
	object := map[string]any{
		"apiVersion": kind.APIVersion, "kind": kind.Name,
		"metadata": map[string]any{"resourceVersion": revision, "annotations": annotations},
	}
	if annotations == nil {
		delete(object["metadata"].(map[string]any), "annotations")
	}
	return json.Marshal(object)
}
