// Package openapi serves the OpenAPI documents, version 2 and 3, as JSON and in
// their protobuf form.
//
// The documents are written by `make gen` from the table of kinds and the comments
// of k8s.io/api, and embedded compressed: they are sent as they are to clients that
// take gzip and decompressed on the way to others. It must never parse or keep one
// in memory.
package openapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
)

//go:generate ../../../../../../tools/openapi/generate.sh
//go:embed documents
var files embed.FS

// Documents are the embedded documents.
type Documents struct {
	// hashes of the version 3 documents, by path ("apis/apps/v1").
	hashes map[string]string
	index  []byte
	v2     func() string // its ETag
}

// The media types of the protobuf forms. kubectl names the older ones, which are
// not valid media types, as well.
var (
	v2Types = []string{negotiate.MediaJSON, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"}
	v3Types = []string{negotiate.MediaJSON, "application/com.github.proto-openapi.spec.v3.v1.0+protobuf", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"}
)

// New opens the documents.
func New() *Documents {
	d := &Documents{v2: sync.OnceValue(func() string {
		sum := sha256.Sum256(read("v2.json.gz"))
		return hex.EncodeToString(sum[:])
	})}
	if err := json.Unmarshal(read("index.json"), &d.hashes); err != nil {
		panic(fmt.Errorf("embedded OpenAPI index: %w", err)) // `make gen` wrote it
	}
	type entry struct {
		URL string `json:"serverRelativeURL"`
	}
	paths := map[string]entry{}
	for path, hash := range d.hashes {
		paths[path] = entry{URL: "/openapi/v3/" + path + "?hash=" + hash}
	}
	var err error
	if d.index, err = json.Marshal(map[string]any{"paths": paths}); err != nil {
		panic(err) // plain strings
	}
	return d
}

// read reads an embedded file; they are what `make gen` wrote.
func read(name string) []byte {
	data, err := files.ReadFile("documents/" + name)
	if err != nil {
		panic(err)
	}
	return data
}

// ServeV2 answers /openapi/v2.
func (d *Documents) ServeV2(w http.ResponseWriter, r *http.Request) {
	serve(w, r, "v2", d.v2(), v2Types)
}

// ServeV3Index answers /openapi/v3: the documents there are, with their hashes.
func (d *Documents) ServeV3Index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", negotiate.MediaJSON)
	w.Header().Set("Content-Length", strconv.Itoa(len(d.index)))
	_, _ = w.Write(d.index)
}

// ServeV3 answers /openapi/v3/PATH. A client that names the document's hash may
// keep it for good; one that names another is sent to the right one.
func (d *Documents) ServeV3(w http.ResponseWriter, r *http.Request) {
	path := strings.Trim(strings.TrimPrefix(r.URL.Path, "/openapi/v3"), "/")
	hash, ok := d.hashes[path]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if asked := r.URL.Query().Get("hash"); asked == hash {
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", "Thu, 31 Dec 2037 23:55:55 GMT")
	} else if asked != "" {
		to := url.URL{Path: "/openapi/v3/" + path, RawQuery: "hash=" + hash}
		http.Redirect(w, r, to.String(), http.StatusMovedPermanently)
		return
	}
	serve(w, r, "v3/"+strings.ReplaceAll(path, "/", "__"), hash, v3Types)
}

// serve sends one document in the form that the client likes best.
func serve(w http.ResponseWriter, r *http.Request, name, hash string, types []string) {
	header := w.Header()
	header.Set("Vary", "Accept, Accept-Encoding")
	index, ok := negotiate.Media(r.Header.Get("Accept"), types...)
	if !ok {
		w.WriteHeader(http.StatusNotAcceptable) // without a body, as in Kubernetes
		return
	}
	file, contentType := name+".json.gz", types[0]
	if index > 0 {
		file, contentType = name+".pb.gz", types[1]
	}
	etag := strconv.Quote(hash)
	header.Set("ETag", etag)
	if match := r.Header.Get("If-None-Match"); match != "" && strings.Contains(match, etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Type", contentType)
	data := read(file)
	if negotiate.Gzip(r.Header.Get("Accept-Encoding")) {
		header.Set("Content-Encoding", "gzip")
		header.Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data)
		return
	}
	zip, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		panic(err) // `make gen` wrote it
	}
	_, _ = io.Copy(w, zip)
}
