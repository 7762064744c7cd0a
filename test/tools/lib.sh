# For scripts that run servers in a throwaway copy of the tree (check, demo).
# Sourced by bash; needs $here, the directory of these tools.

# throwaway_begin NAME TREE: sets $work, a new directory that belongs to the
# user the servers run as, with a copy of the tree in $work/tree; from here on
# everything in it is removed when the script ends, however it ends.
throwaway_begin() {
	# socket paths are limited to about 100 bytes, so not in a long TMPDIR
	work=$(mktemp -d "/tmp/migrate-$1.XXXXXX") || exit 1
	trap throwaway_end EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	chmod 755 "$work"
	mkdir "$work/tree" "$work/tmp"
	tar -C "$2" --exclude=./.git --exclude=./tmp_check --exclude='*.o' --exclude='*.so' -cf - . | tar -C "$work/tree" -xf - --no-same-owner
	run=()
	if [ "$(id -u)" -eq 0 ]; then
		local user=nobody
		id -u postgres >/dev/null 2>&1 && user=postgres
		chown -R "$user:$(id -g "$user")" "$work"
		run=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --clear-groups --inh-caps=-all
			env "USER=$user" "LOGNAME=$user")
	fi
}

# throwaway_run COMMAND ...: run it as that user; its exit status
throwaway_run() {
	local var unset=()
	# nothing of the caller's own PostgreSQL or make may get in the way
	for var in $(compgen -e | grep -E '^(PG|MAKE|MFLAGS|PERL5)' | grep -vxE 'PG_CONFIG'); do
		unset+=(-u "$var")
	done
	(cd "$work" && exec "${run[@]}" env "${unset[@]}" HOME="$work" TMPDIR="$work/tmp" LC_ALL=C.UTF-8 \
		"$@") &
	child=$!
	wait $child
}

# throwaway_install: (as that user, in the copy) build, make a private
# installation of the server and install into it; sets PG_CONFIG and $bin
throwaway_install() {
	local log=$work/build.log
	if ! make -s -j"$(nproc)" PG_CONFIG="$PG_CONFIG" all >"$log" 2>&1 ||
		! PG_CONFIG=$("$here/private_install" "$work/pg" "$PG_CONFIG") ||
		! make PG_CONFIG="$PG_CONFIG" install >"$log" 2>&1; then
		# an error in a header brings thousands more: the first ones tell
		if [ "$(wc -l <"$log")" -gt 120 ]; then
			grep -nE -A4 -m 15 'error|Error|warning' "$log" | cut -c1-300 | head -n 80
			echo "..."
			tail -n 5 "$log"
		else
			cut -c1-2000 "$log"
		fi
		return 1
	fi
	export PG_CONFIG
	bin=$("$PG_CONFIG" --bindir)
}

# pids of processes whose working directory is in $work: every server is one
throwaway_pids() {
	local p d
	for p in /proc/[0-9]*; do
		d=$(readlink "$p/cwd" 2>/dev/null) || continue
		case $d in "$work" | "$work"/*) [ "${p#/proc/}" != $$ ] && echo "${p#/proc/}" ;; esac
	done
	return 0
}

throwaway_end() {
	local status=$? pids i f id
	trap '' INT TERM HUP
	trap - EXIT
	cd /
	[ -n "${work:-}" ] && [ -d "$work" ] || return 0
	pids=$(throwaway_pids)
	if [ -n "$pids" ]; then
		# QUIT is an immediate shutdown to a server
		kill -QUIT $pids 2>/dev/null
		for i in $(seq 30); do
			pids=$(throwaway_pids)
			[ -n "$pids" ] || break
			[ "$i" -lt 20 ] || kill -KILL $pids 2>/dev/null
			sleep 0.1
		done
	fi
	# a server that was killed leaves a System V segment: line 7 is "key id"
	for f in $(find "$work" -name postmaster.pid 2>/dev/null); do
		id=$(sed -n '7s/^ *[0-9]* *\([0-9]*\).*/\1/p' "$f")
		[ -n "$id" ] && ipcrm -m "$id" 2>/dev/null
	done
	if [ -n "${KEEP:-}" ]; then
		echo "kept: $work" >&2
	else
		rm -rf "$work"
	fi
	return $status
}
