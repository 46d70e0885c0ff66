package bocage

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Fields decodes an object into the generic form that Column.Value reads.
func Fields(object Resource) (map[string]any, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	return fields, json.Unmarshal(data, &fields)
}

// Value reads the column's cell out of an object's fields: an empty string for
// what is not there, a comma-separated list for several values.
func (c Column) Value(fields map[string]any) string {
	var values []string
	collect(fields, strings.Split(c.Path, "."), &values)
	return strings.Join(values, ",")
}

// collect walks one dotted path: "name[*]" is every element of a list,
// "conditions[Type]" the status of the condition of that type.
func collect(value any, path []string, out *[]string) {
	if len(path) == 0 {
		switch v := value.(type) {
		case nil:
		case float64:
			*out = append(*out, fmt.Sprintf("%.0f", v))
		case string:
			// A moment to the second is enough in a table.
			if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
				v = at.Format(time.RFC3339)
			}
			*out = append(*out, v)
		default:
			*out = append(*out, fmt.Sprint(v))
		}
		return
	}
	fields, ok := value.(map[string]any)
	if !ok {
		return
	}
	name, index, indexed := strings.Cut(strings.TrimSuffix(path[0], "]"), "[")
	if !indexed {
		collect(fields[name], path[1:], out)
		return
	}
	elements, _ := fields[name].([]any)
	for _, element := range elements {
		if index == "*" {
			collect(element, path[1:], out)
			continue
		}
		if condition, ok := element.(map[string]any); ok && condition["type"] == index {
			collect(condition["status"], nil, out)
		}
	}
}
