package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// OpenAPI v2 is for tools that are older than v3, or slower to learn: Argo CD,
// Terraform and older kubectls ask for it, most of them in protobuf.

// Clients ask for it under a name that is none (RFC 6838 knows no "@"), or under the
// one that is, by which it is always answered.
const (
	protobufOpenAPI2      = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	protobufOpenAPI2Asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
)

// openAPI2 are the two forms of the document.
type openAPI2 struct {
	json, protobuf []byte
}

// newOpenAPI2 draws the v2 document from those of v3.
func newOpenAPI2(v3 map[string][]byte) (*openAPI2, error) {
	paths, definitions := map[string]any{}, map[string]any{}
	for name, data := range v3 {
		var document struct {
			Paths      map[string]map[string]any `json:"paths"`
			Components struct {
				Schemas map[string]any `json:"schemas"`
			} `json:"components"`
		}
		if err := json.Unmarshal(data, &document); err != nil {
			return nil, fmt.Errorf("read back %s: %w", name, err)
		}
		for path, item := range document.Paths {
			paths[path] = pathOf2(item)
		}
		for name, schema := range document.Components.Schemas {
			definitions[name] = schemaOf2(schema)
		}
	}
	o := &openAPI2{}
	var err error
	if o.json, err = json.Marshal(map[string]any{
		"swagger": "2.0", "info": map[string]any{"title": "Bocage", "version": Version},
		"paths": paths, "definitions": definitions,
	}); err != nil {
		return nil, err
	}
	document, err := openapi_v2.ParseDocument(o.json)
	if err != nil {
		return nil, fmt.Errorf("read back the OpenAPI v2 document: %w", err)
	}
	o.protobuf, err = proto.MarshalOptions{Deterministic: true}.Marshal(document)
	return o, err
}

// pathOf2 rewrites the operations of a path.
func pathOf2(item map[string]any) map[string]any {
	out := map[string]any{}
	for method, value := range item {
		if method == "parameters" {
			out[method] = parametersOf2(value)
			continue
		}
		operation, ok := value.(map[string]any)
		if !ok {
			continue
		}
		parameters := parametersOf2(operation["parameters"])
		rewritten := map[string]any{
			"produces": []any{"application/json", "application/yaml"},
			"responses": map[string]any{"200": map[string]any{
				"description": "OK", "schema": schemaOf2(schemaOfContent(operation["responses"].(map[string]any)["200"])),
			}},
		}
		if body, ok := operation["requestBody"].(map[string]any); ok {
			var consumes []any
			for form := range body["content"].(map[string]any) {
				consumes = append(consumes, form)
			}
			rewritten["consumes"] = consumes
			parameters = append(parameters, map[string]any{
				"name": "body", "in": "body", "required": body["required"], "schema": schemaOf2(schemaOfContent(body)),
			})
		}
		if len(parameters) > 0 {
			rewritten["parameters"] = parameters
		}
		for key, value := range operation {
			if strings.HasPrefix(key, "x-") || key == "description" {
				rewritten[key] = value
			}
		}
		out[method] = rewritten
	}
	return out
}

// parametersOf2 lifts each parameter's type out of its schema.
func parametersOf2(list any) []any {
	var out []any
	parameters, _ := list.([]any)
	for _, p := range parameters {
		parameter := p.(map[string]any)
		schema, _ := parameter["schema"].(map[string]any)
		out = append(out, map[string]any{
			"name": parameter["name"], "in": parameter["in"], "required": parameter["required"],
			"description": parameter["description"], "type": schema["type"], "uniqueItems": true,
		})
	}
	return out
}

// schemaOfContent is the schema of any one form of a body.
func schemaOfContent(of any) any {
	content, _ := of.(map[string]any)["content"].(map[string]any)
	for _, form := range content {
		return form.(map[string]any)["schema"]
	}
	return nil
}

// schemaOf2 rewrites references, which stand beside a description in v2 and
// within an allOf in v3.
func schemaOf2(value any) any {
	switch value := value.(type) {
	case []any:
		out := make([]any, len(value))
		for i, item := range value {
			out[i] = schemaOf2(item)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(value))
		for key, inner := range value {
			if text, ok := inner.(string); key == "$ref" && ok {
				out[key] = strings.Replace(text, refPrefix, "#/definitions/", 1)
				continue
			}
			if all, ok := inner.([]any); key == "allOf" && ok && len(all) == 1 {
				if only, ok := all[0].(map[string]any); ok && only["$ref"] != nil {
					out["$ref"] = schemaOf2(only).(map[string]any)["$ref"]
					continue
				}
			}
			out[key] = schemaOf2(inner)
		}
		return out
	}
	return value
}

// serveOpenAPI2 answers in the form that is asked for first.
func (s *Server) serveOpenAPI2(c *call) error {
	document, err := s.openAPI2()
	if err != nil {
		return fmt.Errorf("write OpenAPI v2: %w", err)
	}
	c.w.Header().Add("Vary", "Accept")
	accept := c.r.Header.Get("Accept")
	for _, part := range strings.Split(accept, ",") {
		part = strings.TrimSpace(part)
		if strings.HasPrefix(part, protobufOpenAPI2) || strings.HasPrefix(part, protobufOpenAPI2Asked) {
			return c.writeDocument(protobufOpenAPI2, document.protobuf)
		}
		switch mediaType, _, _ := mime.ParseMediaType(part); mediaType {
		case "", "application/json", "application/*", "*/*":
			return c.writeDocument("application/json", document.json)
		}
	}
	if accept == "" || bytes.Contains([]byte(accept), []byte("json")) {
		return c.writeDocument("application/json", document.json)
	}
	return newProblem(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable,
		"OpenAPI v2 is written as application/json and %s", protobufOpenAPI2)
}
