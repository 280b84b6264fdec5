package pipeline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/codec"
)

const (
	// maxPatchOperations bounds a JSON patch, as in Kubernetes.
	maxPatchOperations = 10000
	// maxCopied bounds the total size of a patch's copy operations in bytes, as in Kubernetes
	// (jsonpatch.AccumulatedCopySizeLimit of k8s.io/apiserver).
	maxCopied = 3 << 20
	// maxPatchTests bounds the bytes that test operations compare, and maxPatchMoves the elements
	// that operations on lists move. Each takes about a second.
	maxPatchTests = 1 << 30
	maxPatchMoves = 1 << 28
	// maxMerges bounds the comparisons of list elements in a strategic merge patch, which
	// searches the entire list for each element of the patch.
	maxMerges = 1 << 27
)

// limitCopies sets the library's bound, which is a package variable.
var limitCopies = sync.OnceFunc(func() { jsonpatch.AccumulatedCopySizeLimit = maxCopied })

// applyJSON applies a JSON patch (RFC 6902) to the JSON of an object.
func applyJSON(data, text []byte) ([]byte, error) {
	limitCopies()
	ops, err := jsonpatch.DecodePatch(data)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if len(ops) > maxPatchOperations {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxPatchOperations, len(ops)))
	}
	if err := checkPatchCost(ops, data, text); err != nil {
		return nil, err
	}
	patched, err := ops.Apply(text)
	if err != nil {
		return nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return patched, nil
}

// checkPatchCost bounds the cost of a patch before it is applied. It assumes the worst case:
// every operation counts with the size and the elements of the entire document.
func checkPatchCost(ops jsonpatch.Patch, data, text []byte) error {
	size := len(text) + len(data)
	elements := bytes.Count(text, []byte{','}) + len(ops)
	copies, tests, moves, depth := 0, 0, 0, codec.MaxDepth/2
	for _, op := range ops {
		path, _ := op.Path()
		levels := strings.Count(path, "/")
		if v := op["value"]; v != nil {
			elements += bytes.Count(*v, []byte{','})
		}
		switch op.Kind() {
		case "test":
			tests++
			continue
		case "copy", "move":
			from, _ := op.From()
			if op.Kind() == "copy" {
				copies++
			} else if inList(from) {
				moves++
			}
			// What was below from is then below path: the document may become deeper by the
			// difference.
			depth += max(levels-strings.Count(from, "/"), 0)
		}
		if inList(path) {
			moves++
		}
		if levels > codec.MaxDepth/2 {
			depth = codec.MaxDepth + 1
		}
	}
	if copies > 0 {
		size += maxCopied
		elements = min(elements*(1+copies), elements+maxCopied/2)
	}
	switch {
	case depth > codec.MaxDepth:
		return apierrors.NewBadRequest(fmt.Sprintf("the patch nests the object deeper than %d levels", codec.MaxDepth))
	case tests*size > maxPatchTests, moves*elements > maxPatchMoves:
		return apierrors.NewRequestEntityTooLargeError("the patch has too many operations for the size of the object, split it")
	}
	return nil
}

// inList reports whether the last token of a path is the index of a list.
func inList(path string) bool {
	c := path[strings.LastIndexByte(path, '/')+1:]
	return c != "" && ('0' <= c[0] && c[0] <= '9' || c[0] == '-')
}

// checkLists bounds the cost of merging the lists of a strategic merge patch.
func checkLists(patch []byte, original map[string]any) error {
	if bytes.Count(patch, []byte{','}) < 1000 {
		return nil
	}
	added := elementsOf(patch)
	if present := listElements(original); added*(added+present) > maxMerges {
		return apierrors.NewRequestEntityTooLargeError("the lists of the patch have too many elements, send the whole object or a merge patch")
	}
	return nil
}

// elementsOf returns the number of elements in all lists of a JSON text.
func elementsOf(text []byte) (n int) {
	d := json.NewDecoder(bytes.NewReader(text))
	var lists []bool
	for {
		token, err := d.Token()
		if err != nil {
			return n
		}
		in := len(lists) > 0 && lists[len(lists)-1]
		switch token {
		case json.Delim('['):
			lists = append(lists, true)
		case json.Delim('{'):
			lists = append(lists, false)
		case json.Delim(']'), json.Delim('}'):
			lists = lists[:len(lists)-1]
			continue
		}
		if in {
			n++
		}
	}
}

func listElements(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			n += listElements(e)
		}
	case []any:
		n += len(v)
		for _, e := range v {
			n += listElements(e)
		}
	}
	return n
}
