package kubeletapi

import (
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// logs serves the log files of this node's pods, as /logs/pods/FOLDER/CONTAINER/FILE. The
// kubelet serves all of /var/log there; other files of the machine are none of the cluster's.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	rest := strings.TrimPrefix(r.URL.Path, "/logs/")
	first, rest, _ := strings.Cut(rest, "/")
	switch {
	case first == "":
		list(w, []string{"pods"})
		return
	case first != "pods":
		http.NotFound(w, r)
		return
	}
	folder, rest, below := strings.Cut(rest, "/")
	folders := s.cfg.LogFolders()
	if folder == "" {
		slices.Sort(folders)
		list(w, folders)
		return
	}
	if !slices.Contains(folders, folder) {
		http.NotFound(w, r)
		return
	}
	if !below { // so that the links of a listing lead into it
		http.Redirect(w, r, (&url.URL{Path: folder + "/"}).String(), http.StatusMovedPermanently)
		return
	}
	root, err := os.OpenRoot(filepath.Join(s.cfg.LogDir, folder))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer root.Close()
	inner := r.Clone(r.Context())
	inner.URL.Path = "/" + rest
	http.FileServerFS(root.FS()).ServeHTTP(w, inner)
}

// list writes a listing of directories.
func list(w http.ResponseWriter, names []string) {
	var b strings.Builder
	b.WriteString("<!doctype html>\n<pre>\n")
	for _, name := range names {
		b.WriteString(`<a href="` + (&url.URL{Path: name + "/"}).String() + `">` + html.EscapeString(name) + "/</a>\n")
	}
	b.WriteString("</pre>\n")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, b.String())
}
