/*
 * The native client: what a runtime executes as the CNI plugin `shimlan` where an agent runs.
 *
 * It hands the CNI_* variables, standard input and the pod's network namespace, opened, to the agent of this host, and
 * prints what the agent answers. It knows nothing of configurations and verbs, except that it answers VERSION itself.
 * When no agent answers it becomes the in-process plugin, and where there is none it fails with error 11.
 *
 *   SHIMLAN_SOCKET    where the agent listens; default: see SOCKET below
 *   SHIMLAN_TIMEOUT   seconds for the whole call; default: see TIMEOUT below
 *   SHIMLAN_FALLBACK  the in-process plugin; default: `shimlan-inprocess` beside this executable; empty: none
 *
 * The messages are those of cni/agent/wire.py, the words those of cni/protocol.py.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SHIMLAN_VERSION
#error "compile with -DSHIMLAN_VERSION='\"x.y.z\"', the version of cni/__init__.py"
#endif

#define SOCKET "/run/shimlan/agent.sock"
#define TIMEOUT "100"
#define LONGEST_TIMEOUT 86400 /* s */
#define QUOTED(number) #number
#define AS_TEXT(number) QUOTED(number)
#define INPROCESS "shimlan-inprocess"

/* Error codes, as text: see cni/errors.py. */
#define INVALID_ENVIRONMENT "4"
#define IO_FAILURE "5"
#define TRY_AGAIN_LATER "11"

static const char *const VERSIONS[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
#define VERSION_COUNT (sizeof VERSIONS / sizeof *VERSIONS)
#define NEWEST VERSIONS[VERSION_COUNT - 1]

#define MAX_DEPTH 100               /* of values in values; see cni/protocol.py */
#define MAX_CONFIGURATION (4 << 20) /* bytes, as are the following */
#define MAX_ENVIRONMENT 131072
#define MAX_ANSWER (16 << 20)
#define USUAL (64 << 10) /* of configurations and answers: seldom is one larger */

#define MAGIC "shimlan\x01"
#define MAGIC_SIZE (sizeof MAGIC - 1)

struct request_header {
    char magic[MAGIC_SIZE];
    uint32_t netns_errno, reserved, environment_length, input_length;
};

struct answer_header {
    char magic[MAGIC_SIZE];
    uint32_t status, length;
};

_Static_assert(sizeof(struct request_header) == 24 && sizeof(struct answer_header) == 16, "as on the wire");

/* What was read so far; what follows is NULs, at least one. */
struct buffer {
    char *bytes;
    size_t room, length;
};

/* Static, because they are there for nothing; small, because the first touch of a large one may cost a huge page. */
static char usual_input[USUAL + 1], usual_answer[USUAL + 1];
static struct buffer input = {usual_input, USUAL, 0}, answer = {usual_answer, USUAL, 0};

/* --- the cniVersion of a configuration --------------------------------------------------------------------------
 *
 * A reader of JSON (RFC 8259) that tells the version at the top level, and whether all of the text is JSON: else it is
 * no configuration. Neither UTF-8 nor the size of numbers is looked at. No rule takes a NUL, so the text's end needs no
 * other check.
 */

/* The beginning of a string; longer than what we look for. */
struct text {
    char bytes[16];
    size_t length;
};

static int value(const char **at, int depth);

static int is(const struct text *text, const char *word) {
    return text->length == strlen(word) && !memcmp(text->bytes, word, text->length);
}

/* The byte after white space. */
static char peek(const char **at) {
    while (**at == ' ' || **at == '\t' || **at == '\n' || **at == '\r')
        ++*at;
    return **at;
}

static int take(const char **at, char wanted) {
    if (peek(at) != wanted)
        return 0;
    ++*at;
    return 1;
}

/* What follows a backslash, as one byte; '\\' stands for all that is in none of our words. */
static int escape(const char **at, char *byte) {
    unsigned code = 0;

    *byte = '\\';
    if (**at != 'u')
        return **at && strchr("\"\\/bfnrt", *(*at)++);
    ++*at;
    for (int i = 0; i < 4; i++, ++*at) {
        if (!isxdigit((unsigned char)**at))
            return 0;
        code = code << 4 | (unsigned)(isdigit((unsigned char)**at) ? **at - '0' : (**at | ' ') - 'a' + 10);
    }
    if (code < 0x80)
        *byte = (char)code;
    return 1;
}

static int string(const char **at, struct text *text) {
    text->length = 0;
    if (!take(at, '"'))
        return 0;
    while (**at != '"') {
        char byte = *(*at)++;
        if ((unsigned char)byte < ' ' || (byte == '\\' && !escape(at, &byte)))
            return 0;
        if (text->length < sizeof text->bytes)
            text->bytes[text->length++] = byte;
    }
    ++*at;
    return 1;
}

static int digits(const char **at) {
    const char *start = *at;

    while (isdigit((unsigned char)**at))
        ++*at;
    return *at > start;
}

static int number(const char **at) {
    if (**at == '-')
        ++*at;
    if (**at == '0')
        ++*at;
    else if (!digits(at))
        return 0;
    if (**at == '.' && (++*at, !digits(at)))
        return 0;
    if ((**at | ' ') != 'e')
        return 1;
    ++*at;
    if (**at == '+' || **at == '-')
        ++*at;
    return digits(at);
}

static int word(const char **at, const char *wanted) {
    size_t length = strlen(wanted);

    if (strncmp(*at, wanted, length))
        return 0;
    *at += length;
    return 1;
}

/* An object; `version` becomes its cniVersion: the last one if there are several, empty if that is no string. */
static int object(const char **at, int depth, struct text *version) {
    struct text key;

    if (!take(at, '{'))
        return 0;
    if (take(at, '}'))
        return 1;
    do {
        if (!string(at, &key) || !take(at, ':'))
            return 0;
        if (is(&key, "cniVersion")) {
            version->length = 0;
            if (peek(at) == '"' ? !string(at, version) : !value(at, depth + 1))
                return 0;
        } else if (!value(at, depth + 1)) {
            return 0;
        }
    } while (take(at, ','));
    return take(at, '}');
}

static int array(const char **at, int depth) {
    if (!take(at, '['))
        return 0;
    if (take(at, ']'))
        return 1;
    do {
        if (!value(at, depth + 1))
            return 0;
    } while (take(at, ','));
    return take(at, ']');
}

static int value(const char **at, int depth) {
    struct text ignored;

    if (depth == MAX_DEPTH)
        return 0;
    switch (peek(at)) {
    case '{':
        return object(at, depth, &ignored);
    case '[':
        return array(at, depth);
    case '"':
        return string(at, &ignored);
    case 't':
        return word(at, "true");
    case 'f':
        return word(at, "false");
    case 'n':
        return word(at, "null");
    default:
        return number(at);
    }
}

/* The version to answer in: the asked one where it is one of ours (`version_answer` in cni/protocol.py). */
static const char *version(void) {
    struct text asked = {.length = 0};
    const char *at = input.bytes;

    if (input.length > MAX_CONFIGURATION || !object(&at, 0, &asked) || peek(&at) || at != input.bytes + input.length)
        return NEWEST;
    for (size_t i = 0; i < VERSION_COUNT; i++)
        if (is(&asked, VERSIONS[i]))
            return VERSIONS[i];
    return NEWEST;
}

/* --- answers of our own -------------------------------------------------------------------------------------- */

static volatile sig_atomic_t finishing;
static char out[8 << 10];
static size_t out_length;

/* Whether a call that failed is to be made again: it was disturbed, or its stream, non-blocking, is ready by now. */
static int again(int fd, short events) {
    struct pollfd stream = {.fd = fd, .events = events};

    return errno == EINTR || (errno == EAGAIN && (poll(&stream, 1, -1) >= 0 || errno == EINTR));
}

static int write_all(int fd, const char *bytes, size_t length) {
    while (length) {
        ssize_t count = write(fd, bytes, length);
        if (count < 0 && !again(fd, POLLOUT))
            return 0;
        if (count > 0) {
            bytes += count;
            length -= (size_t)count;
        }
    }
    return 1;
}

/* The end: print and leave, with 1 if that cannot be printed. A reader that has gone must not kill us by SIGPIPE. */
_Noreturn static void finish(int fd, const char *bytes, size_t length, int status) {
    finishing = 1;
    signal(SIGPIPE, SIG_IGN);
    _exit(write_all(fd, bytes, length) ? status : 1);
}

static void put(const char *text) {
    size_t length = strlen(text);

    memcpy(out + out_length, text, length);
    out_length += length;
}

static void put_versions(const char *separator) {
    for (size_t i = 0; i < VERSION_COUNT; i++) {
        put(i ? separator : "");
        put(VERSIONS[i]);
    }
}

#define TEXT(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Texts as a JSON string; '?' for what is not ASCII, and nothing of what is too long: room is left for what follows. */
static void put_string(const char *const *texts) {
    put("\"");
    for (; *texts; texts++)
        for (const char *at = *texts; *at && out_length < sizeof out / 2; at++) {
            if (*at == '"' || *at == '\\')
                out[out_length++] = '\\';
            out[out_length++] = *at >= ' ' && *at <= '~' ? *at : '?';
        }
    put("\"");
}

/* The end with a CNI error; `details` may be empty. */
_Noreturn static void fail(const char *code, const char *const *msg, const char *const *details) {
    put("{\"cniVersion\": \"");
    put(version());
    put("\", \"code\": ");
    put(code);
    put(", \"msg\": ");
    put_string(msg);
    if (*details) {
        put(", \"details\": ");
        put_string(details);
    }
    put("}\n");
    finish(STDOUT_FILENO, out, out_length, 1);
}

_Noreturn static void answer_version(void) {
    put("{\"cniVersion\": \"");
    put(version());
    put("\", \"supportedVersions\": [\"");
    put_versions("\", \"");
    put("\"]}\n");
    finish(STDOUT_FILENO, out, out_length, 0);
}

/* What people see who start it by hand, as with the in-process plugin. */
_Noreturn static void introduce(void) {
    put("CNI plugin shimlan " SHIMLAN_VERSION ": pods on the LAN by macvlan, reachable from their host\n");
    put("CNI versions: ");
    put_versions(", ");
    put("\n");
    finish(STDERR_FILENO, out, out_length, 0);
}

/* --- the limits of a call ------------------------------------------------------------------------------------ */

static const char *volatile waiting_for = "standard input did not end";

static const char *setting(const char *name, const char *otherwise) {
    const char *given = getenv(name);

    return given && *given ? given : otherwise;
}

static const char *timeout(void) {
    return setting("SHIMLAN_TIMEOUT", TIMEOUT);
}

static const char *socket_path(void) {
    return setting("SHIMLAN_SOCKET", SOCKET);
}

/* Takes over for good, so it may do more than other handlers: whatever it interrupts does not go on. */
static void on_alarm(int signal_number) {
    (void)signal_number;
    if (finishing)
        _exit(1);
    out_length = 0;
    fail(TRY_AGAIN_LATER, TEXT("not done within ", timeout(), " s (SHIMLAN_TIMEOUT): ", waiting_for),
         TEXT("the agent's socket: ", socket_path()));
}

/* The end because of the environment. */
_Noreturn static void refuse(const char *name, const char *given, const char *problem) {
    fail(INVALID_ENVIRONMENT, TEXT(name, ": ", given, problem), TEXT(NULL));
}

/* SHIMLAN_TIMEOUT in seconds. */
static unsigned time_limit(void) {
    unsigned seconds = 0;
    const char *at = timeout();

    for (; isdigit((unsigned char)*at) && seconds <= LONGEST_TIMEOUT; at++)
        seconds = 10 * seconds + (unsigned)(*at - '0');
    if (*at || !seconds || seconds > LONGEST_TIMEOUT)
        refuse("SHIMLAN_TIMEOUT", timeout(), " is no number of seconds from 1 to " AS_TEXT(LONGEST_TIMEOUT));
    return seconds;
}

/*
 * One timer for all that may block: connecting, sending, receiving, but also reading standard input, because a runtime
 * that forgets to close its end shall get an error rather than wait for ever. Our parent may have blocked its signal.
 */
static void limit_time(void) {
    struct sigaction action = {.sa_handler = on_alarm};
    sigset_t alarms;

    sigaction(SIGALRM, &action, NULL);
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    sigprocmask(SIG_UNBLOCK, &alarms, NULL);
    alarm(time_limit());
}

/* --- input --------------------------------------------------------------------------------------------------- */

/* Closed streams become /dev/null, or a descriptor of ours would take their place. */
static void keep_standard_streams(void) {
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    close(fd);
}

static void enlarge(struct buffer *buffer, size_t room) {
    char *bytes;

    if (room <= buffer->room)
        return;
    bytes = mmap(NULL, room + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED)
        fail(TRY_AGAIN_LATER, TEXT("no memory for a message of this size: try again"), TEXT(strerror(errno)));
    buffer->bytes = memcpy(bytes, buffer->bytes, buffer->length);
    buffer->room = room;
}

/*
 * One byte more than a configuration may have shows that there is too much; saying so is the agent's business.
 * Returns 0, or the errno of an input that cannot be read.
 */
static int read_input(void) {
    ssize_t count = 1;

    while (count && input.length <= MAX_CONFIGURATION) {
        if (input.length == input.room)
            enlarge(&input, MAX_CONFIGURATION + 1);
        count = read(STDIN_FILENO, input.bytes + input.length, input.room - input.length);
        if (count < 0 && !again(STDIN_FILENO, POLLIN))
            return errno;
        if (count > 0)
            input.length += (size_t)count;
    }
    return 0;
}

/* The CNI_* variables, one after the other with their NULs; returns their length. */
static size_t collect_environment(char *into) {
    size_t length = 0;

    for (char **variable = environ; *variable; variable++) {
        size_t size = strlen(*variable) + 1;
        if (strncmp(*variable, "CNI_", 4) || !strchr(*variable, '='))
            continue;
        if (size > MAX_ENVIRONMENT - length)
            refuse("CNI_*", "the variables", " have more than " AS_TEXT(MAX_ENVIRONMENT) " bytes");
        memcpy(into + length, *variable, size);
        length += size;
    }
    return length;
}

/* --- without an agent ---------------------------------------------------------------------------------------- */

/* Where the in-process plugin is to be, NULL if there shall be none. */
static const char *inprocess_plugin(void) {
    static char path[PATH_MAX];
    const char *given = getenv("SHIMLAN_FALLBACK");
    ssize_t length;

    if (given)
        return *given ? given : NULL;
    length = readlink("/proc/self/exe", path, sizeof path);
    while (length > 0 && path[length - 1] != '/')
        length--;
    if (length <= 0 || sizeof path - (size_t)length < sizeof INPROCESS)
        return NULL;
    memcpy(path + length, INPROCESS, sizeof INPROCESS);
    return path;
}

/* Execute the in-process plugin with what was read, and without a fallback, lest it calls itself; returns why not. */
static int become(const char *path) {
    char *const arguments[] = {(char *)path, NULL};
    size_t count = 0, kept = 0;
    int copy = memfd_create("stdin", MFD_CLOEXEC);

    if (copy < 0 || !write_all(copy, input.bytes, input.length) || lseek(copy, 0, SEEK_SET) || dup2(copy, 0) < 0)
        return errno;
    while (environ[count])
        count++;
    char *environment[count + 2];
    environment[kept++] = "SHIMLAN_FALLBACK=";
    for (size_t i = 0; i < count; i++)
        if (strncmp(environ[i], "SHIMLAN_FALLBACK=", 17))
            environment[kept++] = environ[i];
    environment[kept] = NULL;
    alarm(0);
    execve(path, arguments, environment);
    return errno;
}

/* No agent, or none any more. All verbs may be repeated, so what it may have done already is no obstacle. */
_Noreturn static void do_without(const char *failure, const char *reason) {
    const char *plugin = inprocess_plugin();
    int error = plugin ? become(plugin) : 0;

    fail(TRY_AGAIN_LATER,
         TEXT("no agent answers at ", socket_path(), ": start the agent (shimlanctl agent), or ",
              plugin ? "put the in-process plugin at " : "name the in-process plugin in SHIMLAN_FALLBACK",
              plugin ? plugin : ""),
         TEXT(failure, ": ", reason, plugin ? "; in-process plugin: " : "", plugin ? strerror(error) : ""));
}

/* --- with an agent ------------------------------------------------------------------------------------------- */

/* A connection to the agent. A blocking connect also waits while more clients are queued than the agent listens for. */
static int connect_to_agent(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    waiting_for = "the agent accepts no connection; see its log";
    if (strlen(socket_path()) >= sizeof address.sun_path)
        refuse("SHIMLAN_SOCKET", socket_path(), " is too long: the path of a socket has at most 107 bytes");
    strcpy(address.sun_path, socket_path());
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        if (errno != EINTR)
            do_without("connect", strerror(errno));
    return fd;
}

/* All of the parts, and the descriptor with the first byte unless it is negative; returns whether all were taken. */
static int send_all(int fd, struct iovec *part, const struct iovec *end, int descriptor) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof descriptor)];
    } control = {{.cmsg_len = CMSG_LEN(sizeof descriptor), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct msghdr message = {.msg_control = &control, .msg_controllen = sizeof control};

    memcpy(CMSG_DATA(&control.header), &descriptor, sizeof descriptor);
    if (descriptor < 0)
        message.msg_controllen = 0;
    while (part < end) {
        message.msg_iov = part;
        message.msg_iovlen = (size_t)(end - part);
        ssize_t count = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (count < 0 && !again(fd, POLLOUT))
            return 0;
        if (count <= 0)
            continue;
        message.msg_controllen = 0;
        for (; part < end && (size_t)count >= part->iov_len; part++)
            count -= (ssize_t)part->iov_len;
        if (part < end) {
            part->iov_base = (char *)part->iov_base + count;
            part->iov_len -= (size_t)count;
        }
    }
    return 1;
}

/* Hand the call over; returns the connection. Whether a missing namespace matters, the agent decides by the verb. */
static int send_request(void) {
    static char environment[MAX_ENVIRONMENT];
    const char *netns = setting("CNI_NETNS", NULL);
    int netns_fd = netns ? open(netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    struct request_header header = {
        .netns_errno = netns && netns_fd < 0 ? (uint32_t)errno : 0,
        .environment_length = (uint32_t)collect_environment(environment),
        .input_length = (uint32_t)input.length,
    };
    struct iovec parts[] = {
        {&header, sizeof header}, {environment, header.environment_length}, {input.bytes, input.length}};
    int fd = connect_to_agent();

    waiting_for = "the agent does not take the request; see its log";
    memcpy(header.magic, MAGIC, MAGIC_SIZE);
    /* An agent that has enough before it has all may have answered. */
    if (!send_all(fd, parts, parts + 3, netns_fd) && errno != EPIPE && errno != ECONNRESET)
        do_without("send", strerror(errno));
    return fd;
}

/* At least so many bytes of the answer. */
static void receive(int fd, size_t wanted) {
    enlarge(&answer, wanted);
    while (answer.length < wanted) {
        ssize_t count = recv(fd, answer.bytes + answer.length, answer.room - answer.length, 0);
        if (count == 0 || (count < 0 && !again(fd, POLLIN)))
            do_without("receive", count ? strerror(errno) : "the answer is not whole");
        if (count > 0)
            answer.length += (size_t)count;
    }
}

_Noreturn static void ask_agent(void) {
    struct answer_header header;
    int fd = send_request();

    waiting_for = "the agent does not answer; see its log";
    receive(fd, sizeof header);
    memcpy(&header, answer.bytes, sizeof header);
    if (memcmp(header.magic, MAGIC, MAGIC_SIZE) || header.status > UINT8_MAX || header.length > MAX_ANSWER)
        do_without("receive", "that is no answer of an agent of this version");
    receive(fd, sizeof header + header.length);
    finish(STDOUT_FILENO, answer.bytes + sizeof header, header.length, (int)header.status);
}

int main(void) {
    const char *command = setting("CNI_COMMAND", "");
    int error;

    keep_standard_streams();
    if (!*command)
        introduce();
    limit_time();
    error = read_input();
    if (!strcmp(command, "VERSION"))
        answer_version();
    if (error)
        fail(IO_FAILURE, TEXT("stdin: cannot read the network configuration: ", strerror(error)), TEXT(NULL));
    ask_agent();
}
