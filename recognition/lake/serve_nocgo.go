//go:build !cgo

package lake

import (
	"encoding/json"
	"fmt"
	"io"
)

// ServeQuery needs DuckDB, which is linked with cgo.
func ServeQuery(_ io.Reader, out io.Writer) error {
	err := fmt.Errorf("%w: this build has no query engine; build with CGO_ENABLED=1", ErrNoAnswers)
	return json.NewEncoder(out).Encode(answer{Error: err.Error()})
}
