package bocage

import (
	"reflect"
	"testing"
	"time"
)

// TestCopyLeavesNothingOut fills every field that a ruleset carries, those to come
// included: what a copy left out would silently not be enforced.
func TestCopyLeavesNothingOut(t *testing.T) {
	r := &Ruleset{}
	fields := reflect.ValueOf(r).Elem()
	for i := range fields.NumField() {
		if !fields.Type().Field(i).IsExported() {
			continue // the index is made anew
		}
		switch field := fields.Field(i); field.Kind() {
		case reflect.Slice:
			field.Set(reflect.MakeSlice(field.Type(), 1, 1))
		case reflect.String:
			field.SetString("x")
		case reflect.Uint32, reflect.Uint64:
			field.SetUint(7)
		default:
			field.Set(reflect.ValueOf(time.Unix(7, 0)))
		}
	}
	c := reflect.ValueOf(r.Copy()).Elem()
	for i := range fields.NumField() {
		if f := fields.Type().Field(i); f.IsExported() && !reflect.DeepEqual(fields.Field(i).Interface(), c.Field(i).Interface()) {
			t.Errorf("%s is %v in the copy", f.Name, c.Field(i))
		}
	}
}
