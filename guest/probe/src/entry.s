# Entry by PVH: 32-bit protected mode, paging off, ebx = hvm_start_info. Everything here runs at CPL 0, which some
# hosts interpret at hundreds of nanoseconds an instruction, so all tables are static and the way to CPL 3 is short.

.section .note.pvh, "a", @note
    .align 4
    .long 4                     # name size
    .long 8                     # descriptor size
    .long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

.section .text.boot, "ax"
.code32
.globl pvh_entry
pvh_entry:
    movl %ebx, start_info
    movl $page_table_4, %eax
    movl %eax, %cr3
    movl $0x620, %eax           # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl $0x80000033, %eax      # PG, NE, ET, MP, PE
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $entry_64

.code64
entry_64:
    movl $0x10, %eax
    movl %eax, %ss
    movl $0x1b, %eax
    movl %eax, %ds
    movl %eax, %es
    lidt idt_pointer
    movl $0x28, %eax
    ltr %ax
    movl $kernel_stack_top, %esp

    # kvmclock, where the host has it: cpuid 0x40000000 says "KVMK", bit 3 of 0x40000001 names MSR 0x4b564d01.
    movl $0x40000000, %eax
    cpuid
    cmpl $0x4b4d564b, %ebx
    jne 1f
    movl $0x40000001, %eax
    cpuid
    testl $8, %eax
    jz 1f
    movl $0x4b564d01, %ecx
    movl $kvmclock_page + 1, %eax
    xorl %edx, %edx
    wrmsr
1:
    pushq $0x1b                 # ss
    pushq $user_stack_top       # rsp
    pushq $0x2                  # rflags: interrupts off, they are taken only inside the hlt service
    pushq $0x23                 # cs
    pushq $user_entry           # rip
    iretq

# CPL 3 from here. The stack is 16-byte aligned at the call, as the ABI wants.
user_entry:
    movl start_info, %edi
    call probe_main
    ud2

# One stub for each vector, 16 bytes apart.
.section .vectors, "ax"
.globl vectors
    .align 65536
vectors:
.set vector, 0
.rept 32
    .align 16
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21))
    pushq $0
    .endif
    .if vector == 13
    jmp general_protection
    .else
    pushq $vector
    jmp fault
    .endif
    .set vector, vector + 1
.endr
.irp number,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .align 16
    jmp interrupt_\number
.endr

# A device interrupt: count it, tell the local APIC, go back. Taken at CPL 0 only, at the hlt below.
.irp number,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
interrupt_\number:
    incl interrupt_counts + 4 * \number
    addr32 movl $0, 0xfee000b0
    iretq
.endr

# hlt at CPL 3 asks for sleep until an interrupt; anything else is a fault. sti's shadow covers hlt, so that an
# interrupt that is already pending wakes it.
general_protection:
    pushq %rax
    movq 16(%rsp), %rax
    cmpb $0xf4, (%rax)
    jne 1f
    incq 16(%rsp)
    popq %rax
    addq $8, %rsp
    sti
    hlt
    cli
    iretq
1:
    popq %rax
    pushq $13

# Stack: vector, error code, rip, cs, rflags, rsp, ss. Goes on at CPL 3 with the story of the fault.
fault:
    popq fault_record
    popq fault_record + 8
    popq fault_record + 16
    movq %cr2, %rax
    movq %rax, fault_record + 24
    movq $fault_stack_top, 16(%rsp)
    pushq $fault_entry
    iretq

fault_entry:
    movl $fault_record, %edi
    call probe_fault
    ud2

.section .tables, "aw"
.globl interrupt_counts, start_info, kvmclock_page
    .align 4096
# The first 4 GiB by 2 MiB pages, for CPL 3 too; the top GiB (devices) uncached. What lies above is mapped when a BAR
# turns out to be there (paging.rs).
.globl page_table_3
page_table_4:
    .quad page_table_3 + 0x7
    .fill 511, 8, 0
page_table_3:
    .quad page_table_2 + 0x7
    .quad page_table_2 + 0x1007
    .quad page_table_2 + 0x2007
    .quad page_table_2 + 0x3007
    .fill 508, 8, 0
page_table_2:
.set page, 0
.rept 1536
    .quad (page << 21) + 0x87
    .set page, page + 1
.endr
.rept 512
    .quad (page << 21) + 0x9f
    .set page, page + 1
.endr

# Written by the host; alone in its page.
kvmclock_page:
    .fill 512, 8, 0

    .align 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08 code, CPL 0, 64-bit
    .quad 0x00cf93000000ffff    # 0x10 data, CPL 0
    .quad 0x00cff3000000ffff    # 0x18 data, CPL 3
    .quad 0x00affb000000ffff    # 0x20 code, CPL 3, 64-bit
    .quad tss_descriptor        # 0x28
    .quad 0
gdt_end:

    .align 16
idt:
.set vector, 0
.rept 64
    .word vector * 16           # low half of the stub's address
    .word 0x08
    .word 0x8e00                # present, interrupt gate, DPL 0
    .word vectors_high
    .quad 0
    .set vector, vector + 1
.endr
idt_end:

    .align 16
# The I/O bitmap is all zero: every port is open to CPL 3.
.globl tss, tss_end
tss:
    .long 0
    .quad kernel_stack_top
    .fill 22, 4, 0
    .word 0
    .word tss_bitmap - tss
tss_bitmap:
    .fill 8192, 1, 0
    .byte 0xff
tss_end:

    .align 8
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .align 8
idt_pointer:
    .word idt_end - idt - 1
    .quad idt
    .align 8
start_info:
    .quad 0
    .align 64
interrupt_counts:
    .fill 32, 4, 0
fault_record:
    .fill 4, 8, 0

.section .bss.stacks, "aw", @nobits
    .align 64
    .skip 4096
kernel_stack_top:
    .skip 16384
fault_stack_top:
    .skip 262144
user_stack_top:
