# To be sourced. install_tool NAME VERSION PACKAGE installs a pinned version of a Go tool
# into .tools/bin unless it is there.
install_tool() {
	local tools=$root/.tools/bin
	mkdir -p "$tools"
	[ "$(cat "$tools/.$1" 2>/dev/null)" = "$2" ] && [ -x "$tools/$1" ] && return
	echo "installing $1 $2"
	GOWORK=off GOFLAGS=-buildvcs=false CGO_ENABLED=0 GOBIN="$tools" go install "$3@$2"
	echo "$2" >"$tools/.$1"
}
