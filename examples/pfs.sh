#!/bin/sh
# A client of pfsd in POSIX sh and nc: run it, or copy from it. docs/protocol.md explains what is on the wire.
set -u
LC_ALL=C # names and content are bytes
export LC_ALL
server=${PFSD_SERVER:-127.0.0.1:7373} # HOST:PORT or unix:PATH
nc=${PFSD_NC:-nc -N}                  # -N: the end of input means "no more requests". ncat needs no option for that

fail() { # EXIT_CODE CODE MESSAGE
    printf 'pfs: %s: %s\n' "$2" "$3" >&2
    exit "$1"
}

usage() {
    fail 2 usage 'pfs.sh put FILE NAME [replace=yes] | get FILE TARGET | rename FILE NAME [replace=yes]
     | list [PATTERN] | stat FILE | delete FILE... | verify [FILE...]     with PFSD_SERVER and PFSD_TOKEN'
}

quote() { # any bytes as a quoted word, which is always a name. Each byte is \xNN, so there is none to think about
    bytes=$(printf %s "$1" | od -An -v -tx1 | tr -d ' \n' | sed 's/../\\x&/g')
    printf '"%s"' "$bytes"
}

words() { # FILEs as words: plain digits are an id, all else is a name
    for file; do
        case $file in
            '' | *[!0-9]*) printf ' %s' "$(quote "$file")" ;;
            *) printf ' %s' "$file" ;;
        esac
    done
}

talk() { # sends the token and standard input; what comes back, without the answer to the token, is its output
    {
        [ -z "${PFSD_TOKEN:-}" ] || printf 'auth %s\n' "$(quote "$PFSD_TOKEN")"
        cat
    } | case $server in
        unix:*) $nc -U "${server#unix:}" ;;
        *) $nc "${server%:*}" "${server##*:}" ;;
    esac | {
        [ -z "${PFSD_TOKEN:-}" ] || { IFS= read -r line && case $line in OK*) ;; *) printf '%s\n' "$line" ;; esac; }
        cat
    }
}

answer() { # shows the rows and the OK of a reply, or its ERR on stderr; returns the exit code
    awk -v server="$server" '
        BEGIN { exits["usage"] = exits["unknown-command"] = exits["too-long"] = 2; exits["partial"] = 3
                exits["not-found"] = 4; code = 5; error = "cannot-connect: no answer from " server }
        /^ERR / { error = substr($0, 5); code = ($2 in exits) ? exits[$2] : 1; exit }
        { print }
        /^OK / { code = 0; exit }
        END { if (code) print "pfs: " error | "cat >&2"; close("cat >&2"); exit code }'
}

field() { # KEY, of the FILE row on standard input: a number. What is in quotes may look like one
    sed -n -e '/^FILE /!d' -e 's/"[^"\\]*\(\\.[^"\\]*\)*"//g' -e "s/.* $1=\([0-9]*\).*/\1/p"
}

put() { # FILE NAME [replace=yes]: just as many bytes as announced, whatever happens to the file meanwhile
    [ -f "$1" ] || fail 4 not-found "there is no file $1"
    size=$(($(wc -c <"$1")))
    { printf 'put - name=%s size=%s %s\n' "$(quote "$2")" "$size" "${3:-}" && head -c "$size" <"$1"; } | talk | answer
}

get() { # FILE TARGET: it appears whole or not at all, and not where something is already
    row=$(printf 'stat%s\n' "$(words "$1")" | talk | answer) || return
    size=$(printf '%s\n' "$row" | field size)
    partial=$2.$$.partial
    trap 'rm -f -- "$partial"' EXIT
    trap 'exit 130' INT && trap 'exit 143' TERM
    # `cat` says nothing of how it went, so count. It takes the id, whose content never changes.
    printf 'cat %s\n' "$(printf '%s\n' "$row" | field id)" | talk >"$partial" || fail 1 io "$partial cannot be written"
    if [ "$(($(wc -c <"$partial")))" != "$size" ]; then
        case $(head -c 4 <"$partial") in 'ERR ') answer <"$partial" || exit ;; esac
        fail 1 connection-lost "not all of its $size bytes came"
    fi
    [ ! -e "$2" ] && ln -- "$partial" "$2" || fail 1 exists "$2 is there already"
    printf '%s\n' "$row"
}

command=${1:-} words=$#
[ "$words" -eq 0 ] || shift
case $command.$words in
    put.[34]) put "$@" ;;
    get.3) get "$@" ;;
    rename.[34]) printf 'rename%s %s %s\n' "$(words "$1")" "$(quote "$2")" "${3:-}" | talk | answer ;;
    list.* | stat.* | delete.* | verify.*) printf '%s%s\n' "$command" "$(words "$@")" | talk | answer ;;
    *) usage ;;
esac
