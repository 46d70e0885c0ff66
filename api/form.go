package api

import (
	"bytes"
	"encoding/json"
	"mime"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"bocage.dev/bocage"
)

// form is how a client wants its answer.
type form struct {
	as   string // Table, PartialObjectMetadata, PartialObjectMetadataList or nothing
	yaml bool
}

// formOf reads an Accept header: the first form that can be made wins, and JSON
// is made for everybody else.
func formOf(accept string) form {
	for _, part := range strings.Split(accept, ",") {
		mediaType, params, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err != nil {
			continue
		}
		switch {
		case mediaType == "application/yaml" && params["as"] == "":
			return form{yaml: true}
		case mediaType != "application/json":
			continue
		}
		switch params["as"] {
		case "", "Table", "PartialObjectMetadata", "PartialObjectMetadataList":
			if params["as"] == "" || params["v"] == "v1" {
				return form{as: params["as"]}
			}
		}
	}
	return form{}
}

// writeObject answers with one object in the form that the client wants.
func (c *call) writeObject(code int, value []byte) error {
	switch c.form.as {
	case "Table":
		table, err := newTable(c.kind, c.query.Get("includeObject"))
		if err != nil {
			return err
		}
		if err := table.add(value); err != nil {
			return err
		}
		writeJSON(c.w, code, table.Table)
		return nil
	case "PartialObjectMetadata":
		partial, err := partialOf(value)
		if err != nil {
			return err
		}
		writeJSON(c.w, code, partial)
		return nil
	}
	return c.writeRaw(code, value)
}

func (c *call) writeRaw(code int, value []byte) error {
	if !c.form.yaml {
		writeBytes(c.w, code, "application/json", append(value[:len(value):len(value)], '\n'))
		return nil
	}
	text, err := yaml.JSONToYAML(value)
	if err != nil {
		return err
	}
	writeBytes(c.w, code, "application/yaml", text)
	return nil
}

// writeList answers with a collection in the form that the client wants.
func (c *call) writeList(found *items) error {
	meta := metav1.ListMeta{
		ResourceVersion: formatRevision(found.revision), Continue: found.next, RemainingItemCount: found.remaining,
	}
	switch c.form.as {
	case "Table":
		table, err := newTable(c.kind, c.query.Get("includeObject"))
		if err != nil {
			return err
		}
		table.ListMeta = meta
		for _, item := range found.items {
			if err := table.add(withRevision(item.value, c.kind, item.revision)); err != nil {
				return err
			}
		}
		writeJSON(c.w, 200, table.Table)
		return nil
	case "PartialObjectMetadataList", "PartialObjectMetadata":
		list := metav1.PartialObjectMetadataList{ListMeta: meta, Items: []metav1.PartialObjectMetadata{}}
		list.APIVersion, list.Kind = "meta.k8s.io/v1", "PartialObjectMetadataList"
		for _, item := range found.items {
			partial, err := partialOf(withRevision(item.value, c.kind, item.revision))
			if err != nil {
				return err
			}
			list.Items = append(list.Items, partial)
		}
		writeJSON(c.w, 200, list)
		return nil
	}
	header, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	out.WriteString(`{"apiVersion":"` + c.kind.APIVersion + `","kind":"` + c.kind.Name + `List","metadata":`)
	out.Write(header)
	out.WriteString(`,"items":[`)
	for i, item := range found.items {
		if i > 0 {
			out.WriteByte(',')
		}
		out.Write(withRevision(item.value, c.kind, item.revision))
	}
	out.WriteString("]}")
	return c.writeRaw(200, out.Bytes())
}

func partialOf(value []byte) (metav1.PartialObjectMetadata, error) {
	var partial metav1.PartialObjectMetadata
	err := json.Unmarshal(value, &partial)
	partial.APIVersion, partial.Kind = "meta.k8s.io/v1", "PartialObjectMetadata"
	return partial, err
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
