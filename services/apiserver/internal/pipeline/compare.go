package pipeline

import (
	"bytes"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"

	"keelson.dev/services/apiserver/internal/resource"
)

// specChanged reports whether metadata.generation must be incremented.
func (p *Pipeline) specChanged(c *change, obj, old resource.Object) bool {
	if f := c.kind.Rules.SpecChanged; f != nil {
		return f(obj, old)
	}
	return !sameSpec(obj, old)
}

// specFields caches, for each type, the indexes of the fields that affect the generation: all but
// metadata and status.
var specFields sync.Map // reflect.Type -> []int

func fieldsOf(t reflect.Type) []int {
	if v, ok := specFields.Load(t); ok {
		return v.([]int)
	}
	var out []int
	for i := range t.NumField() {
		if f := t.Field(i); f.Name != "TypeMeta" && f.Name != "ObjectMeta" && f.Name != "Status" {
			out = append(out, i)
		}
	}
	specFields.Store(t, out)
	return out
}

// sameSpec compares encodings where the field has one, which is many times faster than
// reflection.
func sameSpec(a, b resource.Object) bool {
	va, vb := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for _, i := range fieldsOf(va.Type()) {
		fa, fb := va.Field(i).Addr().Interface(), vb.Field(i).Addr().Interface()
		ma, ok := fa.(interface{ Marshal() ([]byte, error) })
		if !ok {
			if !equality.Semantic.DeepEqual(va.Field(i).Interface(), vb.Field(i).Interface()) {
				return false
			}
			continue
		}
		mb := fb.(interface{ Marshal() ([]byte, error) })
		x, errx := ma.Marshal()
		y, erry := mb.Marshal()
		if errx != nil || erry != nil || !bytes.Equal(x, y) {
			return false
		}
	}
	return true
}
