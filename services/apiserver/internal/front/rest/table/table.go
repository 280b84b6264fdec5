// Package table encodes objects as rows for people to read, for requests with
// `Accept: application/json;as=Table`, which `kubectl get` sends.
//
// It must never contain the columns of a specific kind, which are in the kind's row of the
// resource table.
package table

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// Include is how much of the object is included in its row.
type Include uint8

// Contents of a row.
const (
	// Metadata is the default: a PartialObjectMetadata.
	Metadata Include = iota
	None
	Object
)

// ParseInclude parses the query parameter includeObject.
func ParseInclude(s string) (Include, bool) {
	switch metav1.IncludeObjectPolicy(s) {
	case metav1.IncludeMetadata, "":
		return Metadata, true
	case metav1.IncludeNone:
		return None, true
	case metav1.IncludeObject:
		return Object, true
	}
	return Metadata, false
}

var docs = metav1.ObjectMeta{}.SwaggerDoc()

var (
	nameColumn = metav1.TableColumnDefinition{
		Name: "Name", Type: "string", Format: "name", Description: docs["name"],
	}
	createdColumn = metav1.TableColumnDefinition{
		Name: "Created At", Type: "date", Description: docs["creationTimestamp"],
	}
)

// Columns returns the columns of a kind, or the default columns if k is nil.
func Columns(k *resource.Kind) []metav1.TableColumnDefinition {
	if k == nil || k.Columns == nil || k.Cells == nil {
		return []metav1.TableColumnDefinition{nameColumn, createdColumn}
	}
	if k.NoNameColumn {
		return k.Columns
	}
	return append([]metav1.TableColumnDefinition{nameColumn}, k.Columns...)
}

// encodedColumns caches Columns as JSON, by kind.
var encodedColumns sync.Map

// AppendColumns appends the column definitions as a JSON array.
func AppendColumns(dst []byte, k *resource.Kind) []byte {
	cached, ok := encodedColumns.Load(k)
	if !ok {
		text, err := json.Marshal(Columns(k))
		if err != nil { // plain strings and numbers
			panic(err)
		}
		cached, _ = encodedColumns.LoadOrStore(k, text)
	}
	return append(dst, cached.([]byte)...)
}

// Cells returns the cells of an object's row, one for each column.
func Cells(k *resource.Kind, obj metav1.Object) []any {
	if k != nil && k.Columns != nil && k.Cells != nil {
		if o, ok := obj.(resource.Object); ok {
			cells := k.Cells(o)
			if k.NoNameColumn {
				return cells
			}
			return append([]any{obj.GetName()}, cells...)
		}
	}
	return []any{obj.GetName(), obj.GetCreationTimestamp().UTC().Format(time.RFC3339)}
}

// AppendRow appends a row. included is the object in the row as JSON, or nil. marked is true for
// the kind's default object.
func AppendRow(dst []byte, k *resource.Kind, obj metav1.Object, included []byte, marked bool) ([]byte, error) {
	row := Cells(k, obj)
	if marked {
		row[0] = obj.GetName() + " (default)"
	}
	cells, err := json.Marshal(row)
	if err != nil {
		return dst, fmt.Errorf("cells of %s: %w", obj.GetName(), err)
	}
	dst = append(dst, `{"cells":`...)
	dst = append(dst, cells...)
	dst = append(dst, `,"object":`...)
	if included == nil {
		dst = append(dst, "null"...)
	} else {
		dst = append(dst, included...)
	}
	return append(dst, '}'), nil
}
